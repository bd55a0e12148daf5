// Command mailproof judges whether a mail server is ready to stand behind a
// migration proxy.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "mailproof: no command is built yet")
	os.Exit(2)
}
