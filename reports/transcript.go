package reports

import (
	"slices"
	"strings"
)

// An event is one line of [result.Result.Transcript]. A line of another form
// is an event with nothing but text.
type event struct {
	conn string // the connection's name
	at   string // seconds since the scenario began, as written: "+0.0042"
	dir  string // -> <- ~> <~ == <x >x, or ""
	text string
}

// sent says whether the event is something that we sent.
func (e *event) sent() bool { return e.dir == "->" || e.dir == "~>" }

// received says whether the event is something that the peer sent.
func (e *event) received() bool { return e.dir == "<-" || e.dir == "<~" }

// tls says whether the event happened inside TLS.
func (e *event) tls() bool { return e.dir == "~>" || e.dir == "<~" }

// opens says whether the event notes a new connection.
func (e *event) opens() bool { return e.dir == "==" && strings.Contains(e.text, " -> ") }

// events reads a transcript. What it returns is visible text.
func events(transcript string) []event {
	if transcript == "" {
		return nil
	}
	list := make([]event, 0, strings.Count(transcript, "\n")+1)
	for line := range strings.Lines(transcript) {
		line = visible(strings.TrimSuffix(line, "\n"))
		if line != "" {
			list = append(list, parseEvent(line))
		}
	}
	return list
}

func parseEvent(line string) event {
	rest := line
	conn := ""
	if !strings.HasPrefix(rest, " ") {
		conn, rest, _ = strings.Cut(rest, " ")
	}
	at, rest, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
	dir, text, _ := strings.Cut(rest, " ")
	if !strings.HasPrefix(at, "+") {
		return event{text: line}
	}
	switch dir {
	case "->", "<-", "~>", "<~", "==", "<x", ">x":
		return event{conn: conn, at: at, dir: dir, text: text}
	}
	return event{text: line}
}

// tail is the end of a transcript as visible text: at most so many lines, each
// shortened by cut, and so many octets of them. It says what it left out.
func tail(transcript string, lines, octets int, cut func(string) string) []string {
	all := strings.Split(strings.TrimRight(transcript, "\n"), "\n")
	if len(all) == 1 && all[0] == "" {
		return nil
	}
	from, size := len(all), 0
	var kept []string
	for from > 0 && len(kept) < lines {
		line := cut(visible(all[from-1]))
		if size += len(line) + 1; size > octets {
			break
		}
		kept = append(kept, line)
		from--
	}
	if from > 0 {
		kept = append(kept, "… "+counted(from, "earlier line is", "earlier lines are")+" not shown")
	}
	slices.Reverse(kept)
	return kept
}
