package store

import "sync"

// health is what the Store knows of its connection. The zero value is ready.
type health struct {
	mu        sync.Mutex
	err       error         // of the last call, nil when it was answered
	followers map[int]error // by follower; nil error: in step
	next      int
	unusable  bool // the last handshake could not be begun
}

// handshake notes whether certificates and key could be read for a new connection.
func (h *health) handshake(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unusable = err != nil
}

func (h *health) contact() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = nil
}

func (h *health) failed(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
}

// join registers a follower, which counts as not in step until it says so.
func (h *health) join(err error) (id int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.followers == nil {
		h.followers = map[int]error{}
	}
	h.next++
	h.followers[h.next] = err
	return h.next
}

func (h *health) set(id int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.followers[id] = err
}

func (h *health) leave(id int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.followers, id)
}

// Healthy is nil while every watch is in step with etcd; without watches, while
// the last call was answered. Else it says what is wrong, with the endpoints
// where etcd is: ErrCredentials where it is what this side connects with.
func (s *Store) Healthy() error {
	err, unusable := s.health.wrong()
	if err == nil || !unusable {
		return err
	}
	// That was at the last handshake, and there is none while etcd is away: what could not be
	// read then may be there again.
	if _, cause := s.cfg.tls(); cause != nil {
		return &Error{Op: "connect to etcd", Kind: ErrCredentials, Endpoints: s.cfg.Endpoints, Cause: cause}
	}
	return err
}

// wrong is what is not as it should be, nil where nothing is, and whether the last handshake could
// not be begun.
func (h *health) wrong() (err error, unusable bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	unusable = h.unusable
	for _, why := range h.followers {
		if why != nil {
			return why, unusable
		}
	}
	if len(h.followers) > 0 {
		return nil, unusable
	}
	return h.err, unusable
}
