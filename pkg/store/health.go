package store

import "sync"

// health is what the Store knows of its connection. The zero value is ready.
type health struct {
	mu        sync.Mutex
	err       error         // of the last call, nil when it was answered
	followers map[int]error // by follower; nil error: in step
	next      int
	unusable  error // why the last handshake could not be begun, nil when it could
}

// handshake notes whether certificates and key could be read for a new connection.
func (h *health) handshake(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unusable = err
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

// why is err, or what keeps connections from being begun; mu is held.
func (s *Store) why(err error) error {
	if err == nil || s.health.unusable == nil {
		return err
	}
	return &Error{Op: "connect to etcd", Kind: ErrCredentials, Endpoints: s.cfg.Endpoints, Cause: s.health.unusable}
}

// Healthy is nil while every watch is in step with etcd; without watches, while
// the last call was answered. Else it says what is wrong, with the endpoints
// where etcd is: ErrCredentials where it is what this side connects with.
func (s *Store) Healthy() error {
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	for _, err := range s.health.followers {
		if err != nil {
			return s.why(err)
		}
	}
	if len(s.health.followers) > 0 {
		return nil
	}
	return s.why(s.health.err)
}
