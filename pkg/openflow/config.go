package openflow

import (
	"context"
	"encoding/binary"
	"fmt"
)

// fragmentsMask is OFPC_FRAG_MASK: of the flags of a switch's configuration, what it does with IP fragments (OpenFlow
// 1.4, section 7.3.2). 0 is that flows decide, as with every packet.
const fragmentsMask = 3

// AcceptFragments has flows decide about IP fragments, where the switch was told to drop or reassemble them before
// (`ovs-ofctl set-frags`), and reports whether it was. No flow shows that. Errors are those of the connection, of ctx,
// or a *[SwitchError].
func (c *Conn) AcceptFragments(ctx context.Context) (changed bool, err error) {
	flags, missLength, err := c.config(ctx)
	if err != nil {
		return false, fmt.Errorf("read the configuration of the switch: %w", err)
	}
	if flags&fragmentsMask == 0 {
		return false, nil
	}
	err = c.confirm(ctx, func(b []byte, xid uint32) []byte { return appendSetConfig(b, xid, flags&^fragmentsMask, missLength) })
	if err != nil {
		return false, fmt.Errorf("have the switch take fragments: %w", err)
	}
	return true, nil
}

// config reads struct ofp_switch_config: its flags, and how many bytes of a packet this connection gets that no flow
// matched.
func (c *Conn) config(ctx context.Context) (flags, missLength uint16, err error) {
	k := c.open(1)
	defer c.close(k)
	if err := c.send(ctx, finishMessage(appendMessageHeader(nil, msgGetConfigRequest, k.first), 0)); err != nil {
		return 0, 0, err
	}
	messages, err := c.next(ctx, k)
	if err != nil {
		return 0, 0, err
	}
	switch m := messages[0]; {
	case m.typ == msgError:
		return 0, 0, asError(m)
	case m.typ != msgGetConfigReply:
		return 0, 0, fmt.Errorf("the switch answers with a message of type %d", m.typ)
	case len(m.body) < 4:
		return 0, 0, errShort
	default:
		return binary.BigEndian.Uint16(m.body), binary.BigEndian.Uint16(m.body[2:]), nil
	}
}

// appendSetConfig writes an OFPT_SET_CONFIG.
func appendSetConfig(b []byte, xid uint32, flags, missLength uint16) []byte {
	start := len(b)
	b = appendMessageHeader(b, msgSetConfig, xid)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, missLength)
	return finishMessage(b, start)
}
