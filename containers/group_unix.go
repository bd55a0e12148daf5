//go:build unix

package containers

import (
	"os/exec"
	"syscall"
)

// ownGroup makes a command the head of a process group of its own.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// endGroup asks every process of a command's group to end, or ends them.
func endGroup(cmd *exec.Cmd, now bool) error {
	if cmd.Process == nil {
		return nil
	}
	if now {
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
}
