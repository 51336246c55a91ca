package openflow

import (
	"context"
	"fmt"
	"math"
	"sync"
)

// call is a request, or several in a row, that waits for answers.
type call struct {
	first, n uint32 // its transaction ids
	wake     chan struct{}

	mu       sync.Mutex
	messages []message
}

// open registers a call with n transaction ids in a row; close forgets it.
func (c *Conn) open(n int) *call {
	k := &call{n: uint32(n), wake: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	// 0 is for what answers nothing.
	if c.nextXID == 0 || c.nextXID > math.MaxUint32-k.n {
		c.nextXID = 1
	}
	k.first = c.nextXID
	c.nextXID += k.n
	c.calls[k] = struct{}{}
	return k
}

func (c *Conn) close(k *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.calls, k)
}

// deliver hands a message to the call that it answers. Nobody waits for others:
// answers to calls that were given up, and notices that were not asked for.
func (c *Conn) deliver(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.calls {
		if m.xid-k.first < k.n {
			k.put(m)
			return
		}
	}
}

func (k *call) put(m message) {
	k.mu.Lock()
	k.messages = append(k.messages, m)
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// take returns what has come, in order, without waiting.
func (k *call) take() []message {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := k.messages
	k.messages = nil
	return m
}

// next waits until something has come.
func (c *Conn) next(ctx context.Context, k *call) ([]message, error) {
	for {
		if m := k.take(); len(m) > 0 {
			return m, nil
		}
		select {
		case <-k.wake:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-c.done:
			if m := k.take(); len(m) > 0 {
				return m, nil
			}
			return nil, c.err
		}
	}
}

// send queues whole messages for the writer.
func (c *Conn) send(ctx context.Context, b []byte) error {
	// Not also when there happens to be room in the queue.
	if err := c.Err(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case c.toSwitch <- b:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.done:
		return c.err
	}
}

// multipart sends a request and hands the body of every part of the reply to
// each, which keeps nothing of it but copies.
func (c *Conn) multipart(ctx context.Context, t multipartType, body []byte, each func([]byte) error) error {
	k := c.open(1)
	defer c.close(k)
	if err := c.send(ctx, appendMultipartRequest(nil, k.first, t, body)); err != nil {
		return err
	}
	for {
		messages, err := c.next(ctx, k)
		if err != nil {
			return err
		}
		for _, m := range messages {
			more, err := onePart(t, m, each)
			if err != nil || !more {
				return err
			}
		}
	}
}

func onePart(want multipartType, m message, each func([]byte) error) (more bool, err error) {
	if m.typ == msgError {
		return false, asError(m)
	}
	if m.typ != msgMultipartReply {
		return false, fmt.Errorf("the switch answers a multipart request with a message of type %d", m.typ)
	}
	t, more, body, err := cutMultipart(m.body)
	if err != nil {
		return false, err
	}
	if t != want {
		return false, fmt.Errorf("the switch answers multipart request %d with %d", want, t)
	}
	return more, each(body)
}

// asError is the error that a message says.
func asError(m message) error {
	e, err := decodeError(m.body)
	if err != nil {
		return err
	}
	return e
}
