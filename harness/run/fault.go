package run

// A Fault is a wire defect that the kill matrix injects at one step: it shows
// that the step is looked at. Places are those of [script.Pos.String].
type Fault struct {
	At   string
	Kind FaultKind
}

// FaultKind is what goes wrong at the step.
type FaultKind string

// The kinds of faults.
const (
	FaultWrongReply FaultKind = "wrong-reply"
	FaultClosed     FaultKind = "closed"
	FaultSilence    FaultKind = "silence"
)

// FaultKinds lists them.
func FaultKinds() []FaultKind { return []FaultKind{FaultWrongReply, FaultClosed, FaultSilence} }

// wrongReply is a well-formed reply that no scenario hopes for.
func wrongReply(protocol string) string {
	switch protocol {
	case "imap":
		return "zz BAD this is a wire defect of the kill matrix"
	case "pop3":
		return "+WRONG this is a wire defect of the kill matrix"
	case "managesieve":
		return `BYE "this is a wire defect of the kill matrix"`
	}
	return "399 this is a wire defect of the kill matrix"
}
