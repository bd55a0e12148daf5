package containers

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
)

// RequireDocker is the environment variable that makes a missing engine a
// failure of [ForTest], where it is "1".
const RequireDocker = "MAILPROOF_REQUIRE_DOCKER"

// ForTest starts a lab of the named sources ("dovecot-postfix@trixie", in the
// instrumented profile) for a test, and closes it when the test ends. Where no
// engine answers, the test is skipped with the reason; where the environment
// says MAILPROOF_REQUIRE_DOCKER=1 it fails. A source that does not start fails
// the test.
func ForTest(t testing.TB, sources ...string) *Lab {
	t.Helper()
	var specs []harness.SourceSpec
	for _, s := range sources {
		kind, version, ok := strings.Cut(s, "@")
		if !ok {
			t.Fatalf("%q names no version: write %s@trixie", s, fixtures.DovecotPostfix)
		}
		specs = append(specs, harness.SourceSpec{Name: s, Kind: kind, Version: version, Profile: fixtures.Instrumented})
	}
	NeedEngine(t)
	l, err := Start(t.Context(), Options{Sources: specs, Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for _, f := range l.Failures() {
		t.Error(f)
	}
	return l
}

// NeedEngine skips a test where no engine answers, or fails it where one is
// required.
func NeedEngine(t testing.TB) {
	t.Helper()
	e, err := openEngine(t.Context())
	if err == nil {
		e.close()
		return
	}
	if os.Getenv(RequireDocker) == "1" {
		t.Fatalf("%v, and %s=1 requires one", err, RequireDocker)
	}
	t.Skipf("%v (%s=1 makes this a failure)", err, RequireDocker)
}
