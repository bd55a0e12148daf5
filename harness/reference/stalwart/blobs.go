package stalwart

import (
	"strconv"
	"sync"
)

// Bounds of what may be uploaded over JMAP.
const (
	maxBlobs = 256
	maxBlob  = 4 << 20 // octets
)

// blobs are what was uploaded over JMAP.
type blobs struct {
	mu  sync.Mutex
	all map[string][]byte
	n   int
}

func (b *blobs) put(content []byte) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(content) > maxBlob || len(b.all) >= maxBlobs {
		return "", false
	}
	if b.all == nil {
		b.all = make(map[string][]byte)
	}
	b.n++
	id := "c" + strconv.FormatInt(int64(b.n)+1<<40, 32)
	b.all[id] = content
	return id, true
}

func (b *blobs) get(id string) ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, ok := b.all[id]
	return c, ok
}
