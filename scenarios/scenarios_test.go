package scenarios_test

import (
	"testing"

	"github.com/mailproof/mailproof/scenarios"
	"gotest.tools/v3/assert"
)

func TestEmbeddedScenariosParse(t *testing.T) {
	all, err := scenarios.All()
	assert.NilError(t, err)
	assert.Assert(t, len(all) >= 50, "only %d scenarios", len(all))
}

// Every row of the catalogue is covered or has its reason, and no scenario
// names a row that does not exist.
func TestTheLedgerIsComplete(t *testing.T) {
	all, err := scenarios.All()
	assert.NilError(t, err)
	rows, err := scenarios.Requirements(all)
	assert.NilError(t, err)
	assert.Equal(t, len(rows), 191)
}

// What is never asked of a generic source has its reason.
func TestTheLedgerOfGenericSourcesIsComplete(t *testing.T) {
	all, err := scenarios.All()
	assert.NilError(t, err)
	rows, err := scenarios.NotAskedOfGeneric(all)
	assert.NilError(t, err)
	assert.Assert(t, len(rows) > 50, "%d rows", len(rows))
	for _, r := range rows {
		assert.Check(t, r.Reason != "", r.ID)
		assert.Check(t, r.ID != "J-10" && r.ID != "E-01" && r.ID != "E-14" && r.ID != "J-02", "%s is asked", r.ID)
	}
}
