# mailproof: what a newcomer types first is `make run`.

GO ?= go
OUT ?= out
TESTFLAGS ?= -timeout 20m

.PHONY: run test lint stability rehearse bench build prove prove-docker clean

# Judges real Dovecot and Postfix in containers; without a container engine,
# the reference servers stand in, and it says so.
run:
	@mkdir -p $(OUT)
	@if docker info >/dev/null 2>&1; then lab=docker; \
	  echo "make run: a container engine answers: real Dovecot and Postfix will be judged (--lab docker)"; \
	else lab=reference; \
	  echo "make run: no container engine answers: the reference servers will be judged (--lab reference)."; \
	  echo "make run: that is practice, not evidence; \`$(GO) run ./cmd/mailproof doctor\` says what would help"; fi; \
	$(GO) run ./cmd/mailproof run --lab $$lab --json $(OUT)/result.json --junit $(OUT)/junit.xml --html $(OUT)/report.html

# All tests. Those that need a container engine are skipped without one, with
# the reason; MAILPROOF_REQUIRE_DOCKER=1 makes them fail instead.
test:
	$(GO) vet ./...
	$(GO) test $(TESTFLAGS) ./...

lint:
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) run ./cmd/mailproof lint

# The kill matrix on the reference lab: every assertion must be seen to fail.
prove:
	$(GO) run ./cmd/mailproof prove --lab reference

# The same on real Dovecot and Postfix: every misconfiguration, its diagnosis
# and its remedy. It takes minutes and a container engine.
prove-docker:
	@mkdir -p $(OUT)
	$(GO) run ./cmd/mailproof prove --lab docker --json $(OUT)/matrix.json --markdown $(OUT)/matrix.md

# Twenty runs of the corpus in each of nine combinations of jobs and write
# shapes on the reference lab: no verdict may differ. It takes a minute or two.
stability:
	MAILPROOF_STABILITY=20 $(GO) test -count 1 -run '^TestStability$$' -timeout 20m ./harness

# What every run of the tests does with a stranger's servers, reached by nothing
# but a site file, and besides: the same over OpenSSH alone, and with the Stalwart
# that MAILPROOF_STALWART names. It takes minutes and an engine.
rehearse:
	MAILPROOF_REHEARSE=1 MAILPROOF_REQUIRE_DOCKER=1 $(GO) test -count 1 -v -run '^(TestForeign|TestOpenSMTPDAndCyrus)' -timeout 30m ./containers

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/mailproof ./cmd/mailproof

clean:
	rm -rf bin $(OUT)
