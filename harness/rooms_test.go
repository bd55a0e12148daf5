package harness_test

import (
	"os/exec"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// The rooms, ground floor first. A room may use the rooms above it in this
// list, never the ones below.
var rooms = []string{
	"harness/result", "harness/wire", "harness/proto", "harness/script", "harness/witness", "harness/run", "harness/manage",
	"harness/reference", "fixtures", "scenarios", "harness/site", "harness", "containers", "reports", "cmd/mailproof",
}

const module = "github.com/mailproof/mailproof/"

func room(pkg string) int {
	path := strings.TrimPrefix(pkg, module)
	best, length := -1, 0
	for i, r := range rooms {
		if (path == r || strings.HasPrefix(path, r+"/")) && len(r) > length {
			best, length = i, len(r)
		}
	}
	return best
}

func TestNoRoomImportsUpward(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"...").Output()
	assert.NilError(t, err)
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		pkg, imports, _ := strings.Cut(line, " ")
		own := room(pkg)
		assert.Assert(t, own >= 0, "%s stands in no room", pkg)
		for _, imp := range strings.Fields(imports) {
			if strings.HasPrefix(imp, module) && room(imp) > own {
				t.Errorf("%s imports %s, which is a room below it", pkg, imp)
			}
			docker := strings.HasPrefix(imp, "github.com/testcontainers/") || strings.HasPrefix(imp, "github.com/docker/") || strings.HasPrefix(imp, "github.com/moby/")
			if docker && !strings.HasPrefix(pkg, module+"containers") {
				t.Errorf("%s imports %s: only containers may", pkg, imp)
			}
		}
	}
}
