package proto

import (
	"encoding/binary"
	"strings"

	"github.com/mailproof/mailproof/harness/wire"
)

// WebSocketFrame is one text message of a client's (RFC 6455, section 5.2).
// The masking key is zero, which the document allows and which keeps the text
// readable in a recording.
func WebSocketFrame(text string) []byte {
	b := []byte{0x81}
	switch n := len(text); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	b = append(b, 0, 0, 0, 0)
	return append(b, text...)
}

// websocket reads one message: its text is the unit. Pings and pongs are
// passed over, a close frame is a unit of its own: "close".
func (r *unitReader) websocket() error {
	var text []byte
	for frames := 0; frames < 64; frames++ {
		h, err := r.v.c.ReadFull(2, r.waiting, r.d)
		if err != nil {
			return err
		}
		n := uint64(h[1] & 0x7f)
		if h[1]&0x80 != 0 || h[0]&0x70 != 0 {
			return r.malformed("a frame", "a frame of a server's, without a mask or extension")
		}
		if n >= 126 {
			size := 2
			if n == 127 {
				size = 8
			}
			b, err := r.v.c.ReadFull(size, r.waiting, r.d)
			if err != nil {
				return err
			}
			n = 0
			for _, c := range b {
				n = n<<8 | uint64(c)
			}
		}
		if n > uint64(MaxUnitOctets-len(text)) {
			return &wire.TooLong{Conn: r.v.c.Name(), What: "message", Limit: MaxUnitOctets}
		}
		body, err := r.v.c.ReadFull(int(n), r.waiting, r.d)
		if err != nil {
			return err
		}
		switch h[0] & 0x0f {
		case 0, 1, 2:
			text = append(text, body...)
		case 8:
			r.end("close")
			return nil
		default:
			continue
		}
		if h[0]&0x80 != 0 {
			r.u.Lines = strings.Split(string(text), "\n")
			r.u.Status = r.u.Lines[0]
			return nil
		}
	}
	return r.malformed("64 frames", "the end of a message")
}
