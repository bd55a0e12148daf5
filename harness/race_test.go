//go:build race

package harness_test

// sample says that what takes minutes under the race detector is done in part.
const sample = true
