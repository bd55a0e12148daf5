//go:build unix

package site

import (
	"os/exec"
	"syscall"
)

// ownGroup makes a command end together with everything that it has started.
func ownGroup(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func killGroup(c *exec.Cmd) error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
