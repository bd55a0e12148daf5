package harness_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
)

// What a project writes that uses mailproof in its own "go test": a target,
// and the call. With containers.ForTest instead of a reference lab, the servers
// are real ones.
func TestMailServer(t *testing.T) {
	target := reference(t)
	found := harness.Test(t, target, harness.Select("trust.*", "relay.*"))
	t.Logf("%d claims hold", found.Counts.Pass)
}

func ExampleRun() {
	ctx := context.Background()
	lab, err := harness.StartReference(ctx, []harness.SourceSpec{{Name: "our server", Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: fixtures.Instrumented}}, true)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer lab.Close(ctx)
	found, err := harness.Run(ctx, lab.Target(), harness.Select("relay.not-open-stranger"))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, r := range found.Results {
		fmt.Println(r.Verdict, r.ID, r.Facet)
	}
	// Output:
	// pass relay.not-open-stranger smtp/ip4/direct
	// pass relay.not-open-stranger smtp/ip6/direct
}

// asProject makes TestOfAProject a project's own test, with a server that fails
// a must, fails a should, and one that is right.
const asProject = "MAILPROOF_TEST_AS_PROJECT"

func TestOfAProject(t *testing.T) {
	if os.Getenv(asProject) == "" {
		t.Skip("this is what TestTheReportOfGoTest runs as a project of its own; run that")
	}
	spec := harness.SourceSpec{Name: "mail", Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: fixtures.Instrumented, Bugs: []string{"relay-everyone", "lip-not-honoured"}}
	var opts []harness.Option
	if os.Getenv(asProject) == "strict" {
		opts = append(opts, harness.Strict())
	}
	harness.Test(t, reference(t, spec), append(opts, harness.Select("relay.not-open-stranger", "relay.greets", "client-address.port-and-destination-imap"))...)
}

// Each result is a subtest with its attributes; evidence of what did not pass
// lies in the artifact directory; a should fails only strictly.
func TestTheReportOfGoTest(t *testing.T) {
	for _, mode := range []string{"lenient", "strict"} {
		t.Run(mode, func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestOfAProject$", "-test.v=test2json", "-test.artifacts", "-test.outputdir", dir)
			cmd.Env = append(os.Environ(), asProject+"="+mode)
			out, err := cmd.CombinedOutput()
			assert.Assert(t, err != nil, "a failed must fails the test: %s", out)
			text := string(out)
			failed := map[string]bool{}
			for _, line := range strings.Split(text, "\n") {
				if _, rest, ok := strings.Cut(line, "--- FAIL: TestOfAProject/"); ok {
					id, _, _ := strings.Cut(rest, "/")
					failed[id] = true
				}
			}
			assert.Assert(t, failed["relay.not-open-stranger"], text)
			assert.Assert(t, !failed["relay.greets"], text)
			assert.Equal(t, failed["client-address.port-and-destination-imap"], mode == "strict", text)
			for _, want := range []string{
				"=== ATTR  TestOfAProject/relay.not-open-stranger/mail/smtp/ip4/direct requirements ", "smtp/ip4/direct verdict fail", "smtp/ip4/direct origin reference",
				"relay-refused.txtar:", "wanted  ", "found   ", "means   ", "MP-OPEN-RELAY",
			} {
				assert.Assert(t, strings.Contains(text, want), "%s is not in\n%s", want, text)
			}
			var evidence []string
			assert.NilError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.Name() == "transcript.txt" {
					evidence = append(evidence, path)
				}
				return err
			}))
			assert.Equal(t, len(evidence), 4, "one for each result that did not pass: %v", evidence)
			for _, path := range evidence {
				b, err := os.ReadFile(path)
				assert.NilError(t, err)
				assert.Assert(t, strings.Contains(string(b), "A    +"), "%s: %s", path, b)
			}
		})
	}
}
