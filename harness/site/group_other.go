//go:build !unix

package site

import "os/exec"

// ownGroup leaves a command as it is: there are no process groups here.
func ownGroup(*exec.Cmd) {}

func killGroup(c *exec.Cmd) error { return c.Process.Kill() }
