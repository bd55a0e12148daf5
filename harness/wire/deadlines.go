package wire

import "time"

// Deadlines is the one table of how long the harness waits, and for what.
// Every wait in the harness names one of them; a step of a scenario may
// shorten or lengthen its own with "within".
type Deadlines struct {
	Dial      time.Duration // until a connection is established
	Handshake time.Duration // until a TLS handshake is complete
	Greeting  time.Duration // until the server's greeting is complete
	Reply     time.Duration // until one reply unit is complete
	Close     time.Duration // until the peer closes, where a step wants that
	Witness   time.Duration // until a joined record is there
}

// Lab is the table for servers that the harness started: generous, because a
// loaded CI machine is slow, and never waited out by a run that goes well.
func Lab() Deadlines {
	return Deadlines{
		Dial:      5 * time.Second,
		Handshake: 10 * time.Second,
		Greeting:  10 * time.Second,
		Reply:     20 * time.Second,
		Close:     10 * time.Second,
		Witness:   15 * time.Second,
	}
}

// Site is the table for servers of an operator's, which may be far away, greet
// late on purpose and log through a command.
func Site() Deadlines {
	return Deadlines{
		Dial:      5 * time.Second,
		Handshake: 10 * time.Second,
		Greeting:  15 * time.Second,
		Reply:     20 * time.Second,
		Close:     10 * time.Second,
		Witness:   10 * time.Second,
	}
}

// Scale multiplies every deadline.
func (d Deadlines) Scale(f float64) Deadlines {
	s := func(x time.Duration) time.Duration { return time.Duration(float64(x) * f) }
	return Deadlines{s(d.Dial), s(d.Handshake), s(d.Greeting), s(d.Reply), s(d.Close), s(d.Witness)}
}
