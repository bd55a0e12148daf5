package run

import (
	"context"

	"github.com/mailproof/mailproof/harness/result"
)

// diagnose groups findings under their causes.
func diagnose(ctx context.Context, t *Target, run *result.Run) {}
