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
