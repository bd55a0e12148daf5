// Package vantage lets the harness act from an address that is not its own. A
// small program stands at that address ([Serve]) and dials for the harness;
// one stream of octets, such as a container's standard input and output,
// carries all its connections ([Client]).
//
// What is promised: a connection's local address and port are those that left
// the vantage; what the peer sent arrives in order and whole, then its FIN or
// its reset; a refused or unreachable dial says so with the system's own
// error number; and a connection that nobody reads neither blocks the others
// nor grows. A vantage does not listen, and does not resolve names.
package vantage

import (
	"encoding/binary"
	"fmt"
	"io"
)

// A frame is a type, a stream number, a length and that many octets.
//
//	0      1              5              9
//	+------+--------------+--------------+----------------
//	| type | stream       | length       | payload …
//	+------+--------------+--------------+----------------
const (
	headerLen = 9
	// maxPayload bounds a frame, and with it what a broken peer can make the
	// other side hold.
	maxPayload = 32 << 10
	// window is how many octets of one direction of one stream may be on the
	// way: sent and not yet taken by who reads the connection.
	window = 256 << 10
)

type frameType byte

const (
	// The vantage says that it is there, and of which version it is.
	frameHello frameType = iota + 1
	// The harness dials: the payload is an address and port.
	frameDial
	// The vantage has connected: the payload is its own address and port.
	frameOpened
	// The vantage could not connect: the payload is an errno and words.
	frameFailed
	// Octets, in either direction.
	frameData
	// No more octets will come in this direction.
	frameFIN
	// The connection is gone. From the vantage: an errno and words. From the
	// harness: abort it with RST.
	frameReset
	// The harness wants no more of the connection: what it sent is delivered,
	// then the connection is closed.
	frameClose
	// The vantage has let go of the stream: its number may be forgotten.
	frameGone
	// So many octets were taken: as many more may be sent.
	frameWindow
	frameEnd
)

const version = 1

type frame struct {
	typ     frameType
	stream  uint32
	payload []byte
}

func appendFrame(b []byte, typ frameType, stream uint32, payload []byte) []byte {
	b = append(b, byte(typ))
	b = binary.BigEndian.AppendUint32(b, stream)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// readFrame reads one frame. The payload is good until the next call with the
// same buffer. A frame that is none is an error, and the stream with it.
func readFrame(r io.Reader, buf []byte) (frame, error) {
	var h [headerLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, err
	}
	f := frame{typ: frameType(h[0]), stream: binary.BigEndian.Uint32(h[1:5])}
	n := binary.BigEndian.Uint32(h[5:9])
	if f.typ == 0 || f.typ >= frameEnd {
		return frame{}, fmt.Errorf("not a vantage's stream: a frame of type %d", f.typ)
	}
	if n > maxPayload {
		return frame{}, fmt.Errorf("not a vantage's stream: a frame of %d octets, at most %d", n, maxPayload)
	}
	f.payload = buf[:n]
	if _, err := io.ReadFull(r, f.payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, err
	}
	return f, nil
}

func number(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// cut reads a number and what follows it.
func cut(b []byte) (uint32, []byte, error) {
	if len(b) < 4 {
		return 0, nil, fmt.Errorf("not a vantage's stream: a payload of %d octets where a number stands", len(b))
	}
	return binary.BigEndian.Uint32(b), b[4:], nil
}
