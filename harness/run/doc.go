// Package run selects scenarios, plans them, executes them against a
// [Target], repeats and judges them, and diagnoses what failed.
//
// It promises that nothing is sent that was not planned, that no claim passes
// without its witness, and that every goroutine it starts has ended when its
// functions return. It knows nothing of containers, command lines or report
// formats.
package run
