package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxSecret bounds a password, in octets.
const maxSecret = 4096

// A Secret says where a password is kept. The password itself stands in no
// file of ours, in no plan and on no command line.
type Secret struct {
	How  string // "env", "file" or "command"
	What string
}

func parseSecret(ref string) (Secret, error) {
	how, what, ok := strings.Cut(ref, ":")
	what = strings.TrimSpace(what)
	if ok && what != "" {
		switch how {
		case "env", "file", "command":
			return Secret{how, what}, nil
		}
	}
	// The text may be the password itself: it is not repeated.
	return Secret{}, errors.New("a password does not stand here: write env:NAME, file:PATH or command:COMMAND")
}

// read fetches the password. Errors carry no part of it.
func (s Secret) read(ctx context.Context, o Options) (string, error) {
	var text []byte
	switch s.How {
	case "env":
		v, ok := o.env(s.What)
		if !ok {
			return "", fmt.Errorf("the environment has no %s", s.What)
		}
		text = []byte(v)
	case "file":
		f, err := os.Open(s.What)
		if err != nil {
			return "", err
		}
		defer f.Close()
		if text, err = io.ReadAll(io.LimitReader(f, maxSecret+2)); err != nil {
			return "", err
		}
	case "command":
		var err error
		if text, err = output(ctx, s.What, maxSecret+2); err != nil {
			return "", err
		}
	}
	text, _, _ = bytes.Cut(text, []byte("\n"))
	text = bytes.TrimSuffix(text, []byte("\r"))
	switch {
	case len(text) == 0:
		return "", fmt.Errorf("%s:%s gave nothing", s.How, s.What)
	case len(text) > maxSecret:
		return "", fmt.Errorf("%s:%s gave more than %d octets", s.How, s.What, maxSecret)
	case bytes.IndexByte(text, 0) >= 0:
		return "", fmt.Errorf("%s:%s gave a zero octet, which no password may hold", s.How, s.What)
	}
	return string(text), nil
}
