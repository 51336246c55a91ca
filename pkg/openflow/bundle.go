package openflow

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Parts of bundle messages (OpenFlow 1.4, sections 7.3.9.1 to 7.3.9.6).
const (
	bundleOpen      = 0
	bundleClose     = 2
	bundleCommit    = 4
	bundleDiscard   = 6
	bundleIsReply   = 1 // added to the request's type
	bundleAtomic    = 1 << 0
	bundleOrdered   = 1 << 1
	bundleFlags     = bundleAtomic | bundleOrdered
	bundleBodySize  = 8
	bundleWriteSize = 1 << 16 // bytes handed to the writer at once
)

// Commit applies the parts in their order as one atomic change: no packet sees
// a state in which some are applied and others are not. When the switch refuses
// one of them, none is applied and the error is a *[ModError] that names it.
// When ctx ends or the connection is lost while the switch is carrying the
// change out, it may or may not have happened, and the error says so.
//
// The parts go to the switch together, but they are committed only after it has
// looked at every one of them: Open vSwitch would commit a bundle without the
// parts that it refused.
func (c *Conn) Commit(ctx context.Context, mods []Mod) error {
	if len(mods) == 0 {
		return nil
	}
	if len(mods) > math.MaxInt32 {
		return fmt.Errorf("bundle of %d parts: too many", len(mods))
	}
	t := &bundle{c: c, id: c.lastBundle.Add(1), mods: mods, call: c.open(len(mods) + 3)}
	defer c.close(t.call)
	c.parts.Add(int64(len(mods)))
	defer c.parts.Add(-int64(len(mods)))
	if err := t.fill(ctx); err != nil {
		t.discard()
		return t.failed(err)
	}
	if err := t.await(ctx, t.xid(len(mods)+1), bundleClose); err != nil {
		t.discard()
		return t.failed(err)
	}
	if err := c.send(ctx, t.control(nil, t.xid(len(mods)+2), bundleCommit)); err != nil {
		t.discard()
		return t.failed(err)
	}
	err := t.await(ctx, t.xid(len(mods)+2), bundleCommit)
	var refused *SwitchError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return t.failed(err) // the switch has dropped the bundle itself
	}
	return fmt.Errorf("bundle of %d parts may or may not have been applied: %w", len(mods), err)
}

// Post hands the parts to the switch, which takes them one by one, and does not wait: nobody
// hears of those that it refuses. It fails when the connection has ended.
func (c *Conn) Post(ctx context.Context, mods []Mod) error {
	var b []byte
	for _, m := range mods {
		b = m.append(b, 0)
	}
	return c.send(ctx, b)
}

// bundle is one call of Commit. Its transaction ids in order: the opening, the
// parts, the closing, the commit.
type bundle struct {
	c    *Conn
	id   uint32
	mods []Mod
	call *call
}

func (t *bundle) xid(i int) uint32 { return t.call.first + uint32(i) }

// control writes an OFPT_BUNDLE_CONTROL.
func (t *bundle) control(b []byte, xid uint32, typ uint16) []byte {
	start := len(b)
	b = appendMessageHeader(b, msgBundleControl, xid)
	b = binary.BigEndian.AppendUint32(b, t.id)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint16(b, bundleFlags)
	return finishMessage(b, start)
}

// add writes an OFPT_BUNDLE_ADD. The message inside has the same transaction id
// (section 7.3.9.6).
func (t *bundle) add(b []byte, i int) ([]byte, error) {
	start, xid := len(b), t.xid(i+1)
	b = appendMessageHeader(b, msgBundleAdd, xid)
	b = binary.BigEndian.AppendUint32(b, t.id)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, bundleFlags)
	b = t.mods[i].append(b, xid)
	if n := len(b) - start; n > maxMessage {
		return nil, &ModError{Index: i, Mod: t.mods[i], Err: fmt.Errorf("it takes %d bytes; a message has at most %d", n, maxMessage)}
	}
	return finishMessage(b, start), nil
}

// fill sends everything up to and with the closing.
func (t *bundle) fill(ctx context.Context) error {
	b := make([]byte, 0, min(bundleWriteSize+1024, 128*(len(t.mods)+2)))
	b = t.control(b, t.xid(0), bundleOpen)
	var err error
	for i := range t.mods {
		if b, err = t.add(b, i); err != nil {
			return err
		}
		if len(b) >= bundleWriteSize {
			if err := t.c.send(ctx, b); err != nil {
				return err
			}
			b = make([]byte, 0, bundleWriteSize+1024) // the writer has the other
		}
	}
	return t.c.send(ctx, t.control(b, t.xid(len(t.mods)+1), bundleClose))
}

// await waits for the answer to a control message. Errors about parts come
// before it, because the switch answers in order; the first one counts.
func (t *bundle) await(ctx context.Context, xid uint32, typ uint16) error {
	var refused error
	for {
		messages, err := t.c.next(ctx, t.call)
		if err != nil {
			return err
		}
		for _, m := range messages {
			switch {
			case m.typ == msgError:
				if refused == nil {
					refused = t.refusal(m)
				}
				if m.xid == xid {
					return refused
				}
			case m.typ != msgBundleControl || len(m.body) < bundleBodySize:
				return fmt.Errorf("the switch answers a bundle with a message of type %d and %d bytes", m.typ, len(m.body))
			case m.xid == xid:
				if got := binary.BigEndian.Uint16(m.body[4:]); got != typ+bundleIsReply && refused == nil {
					return fmt.Errorf("the switch answers bundle request %d with %d", typ, got)
				}
				return refused
			}
		}
	}
}

// refusal is the error that a message says, with the part that it is about.
func (t *bundle) refusal(m message) error {
	err := asError(m)
	if i := int(m.xid-t.call.first) - 1; i >= 0 && i < len(t.mods) {
		return &ModError{Index: i, Mod: t.mods[i], Err: err}
	}
	return err
}

// discard lets the switch forget the bundle, unless the writer is stuck: then it
// is forgotten when the connection ends, or by itself after 10 s (Open vSwitch,
// bundle-idle-timeout). It is never committed.
func (t *bundle) discard() {
	select {
	case t.c.toSwitch <- t.control(nil, t.xid(len(t.mods)+2), bundleDiscard):
	default:
	}
}

func (t *bundle) failed(err error) error {
	var one *ModError
	if errors.As(err, &one) {
		return err
	}
	return fmt.Errorf("bundle of %d parts not applied: %w", len(t.mods), err)
}
