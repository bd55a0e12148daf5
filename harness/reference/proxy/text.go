package proxy

import (
	"encoding/base64"
	"strings"
)

func base64Of(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// sentence writes words as one.
func sentence(words string) string { return strings.ToUpper(words[:1]) + words[1:] + "." }

// cutVerb splits a command at its first space; the verb is in capitals.
func cutVerb(line string) (verb, rest string, spaced bool) {
	verb, rest, spaced = strings.Cut(line, " ")
	return strings.ToUpper(verb), rest, spaced
}
