//go:build !unix

package containers

import "os/exec"

func ownGroup(*exec.Cmd) {}

// endGroup ends a command; where there are no process groups, that is all.
func endGroup(cmd *exec.Cmd, _ bool) error {
	if cmd.Process == nil {
		return nil
	}
	return cmd.Process.Kill()
}
