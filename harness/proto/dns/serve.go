package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"
)

const (
	maxDatagram = 512 // of an answer over UDP (RFC 1035, 2.3.4)
	maxStream   = 64  // connections at a time
	streamFor   = 5 * time.Second
)

// Serve answers questions about the zone that come to p in datagrams, and to l
// over connections, until ctx ends. It closes both, and everything it has begun
// has ended when it returns. It returns nil when ctx ended.
func (z *Zone) Serve(ctx context.Context, p net.PacketConn, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { p.Close(); l.Close() })
	defer stop()
	ended := make(chan error, 2)
	go func() { ended <- z.datagrams(p) }()
	go func() { ended <- z.connections(ctx, l) }()
	err := <-ended
	closing := ctx.Err() != nil
	cancel()
	other := <-ended
	if closing {
		return nil
	}
	if errors.Is(err, net.ErrClosed) {
		err = other
	}
	return err
}

func (z *Zone) datagrams(p net.PacketConn) error {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := p.ReadFrom(buf)
		if err != nil {
			return err
		}
		if reply := z.Answer(buf[:n], maxDatagram); reply != nil {
			p.WriteTo(reply, from) // who does not get it asks again
		}
	}
}

func (z *Zone) connections(ctx context.Context, l net.Listener) error {
	turn := make(chan struct{}, maxStream)
	defer func() {
		for range maxStream { // every connection has ended
			turn <- struct{}{}
		}
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		turn <- struct{}{}
		go func() {
			defer func() { <-turn }()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			defer c.Close()
			z.connection(c)
		}()
	}
}

// connection answers the questions of one connection, each with its length
// before it (RFC 1035, 4.2.2).
func (z *Zone) connection(c net.Conn) {
	var size [2]byte
	for {
		c.SetDeadline(time.Now().Add(streamFor))
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		reply := z.Answer(query, 1<<16-1)
		if reply == nil {
			return
		}
		binary.BigEndian.PutUint16(size[:], uint16(len(reply)))
		if _, err := c.Write(append(size[:], reply...)); err != nil {
			return
		}
	}
}
