package postfix

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"bufio"

	"github.com/mailproof/mailproof/harness/reference/source/link"
)

// tlsFacts are what the log and a Received field tell of a TLS session.
type tlsFacts struct {
	protocol, cipher string
	bits             int
	exchange, sign   string
}

func (in *session) tlsFacts() tlsFacts {
	state := in.c.TLS()
	f := tlsFacts{protocol: link.Protocol(state)}
	f.cipher, f.bits = link.Cipher(state)
	if f.protocol != "TLSv1.3" {
		return f
	}
	if f.exchange = link.Curve(state); in.srv.c.release == Trixie {
		f.exchange = strings.ToLower(f.exchange)
	}
	switch key := in.srv.tls.Certificates[0].PrivateKey.(type) {
	case *rsa.PrivateKey:
		f.sign = fmt.Sprintf("RSA-PSS (%d bits)", key.N.BitLen())
	case *ecdsa.PrivateKey:
		f.sign = "ECDSA (prime256v1)"
	}
	return f
}

// describeTLS writes the TLS session as the log does.
func (in *session) describeTLS() string {
	f := in.tlsFacts()
	s := fmt.Sprintf("%s with cipher %s (%d/%d bits)", f.protocol, f.cipher, f.bits, f.bits)
	if f.exchange != "" {
		s += " key-exchange " + f.exchange
	}
	if f.sign != "" {
		s += " server-signature " + f.sign + " server-digest SHA256"
	}
	return s
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func isEOF(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

func isBufferFull(err error) bool { return errors.Is(err, bufio.ErrBufferFull) }
