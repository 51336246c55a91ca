package hostnet

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/florianl/go-nflog/v2"
	"github.com/mdlayher/netlink"
	"sigs.k8s.io/knftables"
)

const (
	// toldGroup is the group of the kernel's log of packets that what a Judge drops goes to. A
	// group has one listener in a network namespace.
	toldGroup = 19783
	// toldSet has the pods of which packets were told, with what may be told of each.
	toldSet = "told"
	// toldPods is how many pods may be in it, toldFor how long one stays without a packet.
	toldPods, toldFor = 4096, time.Minute
	// toldBytes is how much of a packet is told: the header of IPv4 with options, and the ports.
	toldBytes = 64
	// toldWithin is how long the kernel may keep packets to tell several at once, hundredths of a second.
	toldWithin = 10
)

// tell precedes [drop] where the agent wants to hear of what is dropped: not more of a pod than its
// log has lines for, so that one that sends much costs no other its lines.
var tell = rule{[]any{
	fmt.Sprintf("add @%s { ct original ip saddr limit rate 10/second burst 20 packets } log group %d snaplen %d", toldSet, toldGroup, toldBytes),
}, "the agent is told"}

// DroppedPacket is one that a [Judge] dropped. From or To is the pod; the ports are 0 where the
// protocol (that of IP) has none.
type DroppedPacket struct {
	Protocol uint8
	From, To netip.AddrPort
}

// TellDropped has take hear of packets that are dropped from the next Set on, until ctx ends; of each
// pod 10 a second at most. Call it before the first Set. It fails where the kernel cannot tell, or
// tells somebody else.
func (j *Judge) TellDropped(ctx context.Context, take func(DroppedPacket), log *slog.Logger) error {
	var heard *nflog.Nflog
	err := j.run("packets that it drops", func() (err error) {
		tx := j.nft.NewTransaction()
		tx.Add(&knftables.Table{})
		addTold(tx)
		const probe = "probe"
		tx.Add(&knftables.Chain{Name: probe})
		tx.Add(&knftables.Rule{Chain: probe, Rule: knftables.Concat(tell.match...)})
		if err := j.nft.Check(ctx, tx); err != nil {
			return err
		}
		heard, err = nflog.Open(&nflog.Config{Group: toldGroup, Copymode: nflog.CopyPacket, Bufsize: toldBytes, Timeout: toldWithin})
		if err != nil {
			return err
		}
		// It reads whole rounds; a flood that does not fit is counted all the same.
		_ = heard.SetOption(netlink.NoENOBUFS, true)
		err = heard.RegisterWithErrorFunc(ctx, func(a nflog.Attribute) int {
			if a.Payload == nil {
				return 0
			}
			if p, ok := readDropped(*a.Payload); ok {
				take(p)
			}
			return 0
		}, func(err error) int {
			if ctx.Err() != nil {
				return 1
			}
			log.Warn("cannot read what policies deny past the switch: it is counted and not logged", "error", err)
			return 1
		})
		if err != nil {
			_ = heard.Close()
		}
		return err
	})
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = heard.Close() })
	j.tells.Store(true)
	return nil
}

// addTold adds the set that tell needs, where it is not there.
func addTold(tx *knftables.Transaction) {
	size, timeout := uint64(toldPods), toldFor
	tx.Add(&knftables.Set{
		Name: toldSet, Type: "ipv4_addr", Flags: []knftables.SetFlag{knftables.DynamicFlag, knftables.TimeoutFlag}, Size: &size, Timeout: &timeout,
	})
}

// readDropped reads the beginning of a packet of IPv4 (RFC 791); false where it is none.
func readDropped(b []byte) (p DroppedPacket, ok bool) {
	const shortest = 20
	if len(b) < shortest || b[0]>>4 != 4 {
		return p, false
	}
	header, later := int(b[0]&0xf)*4, binary.BigEndian.Uint16(b[6:])&0x1fff != 0
	from, to := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	var source, destination uint16
	if hasPorts(b[9]) && !later && header >= shortest && len(b) >= header+4 {
		source, destination = binary.BigEndian.Uint16(b[header:]), binary.BigEndian.Uint16(b[header+2:])
	}
	return DroppedPacket{Protocol: b[9], From: netip.AddrPortFrom(from, source), To: netip.AddrPortFrom(to, destination)}, true
}

// hasPorts says which protocols begin with two ports: TCP, UDP, SCTP.
func hasPorts(protocol uint8) bool { return protocol == 6 || protocol == 17 || protocol == 132 }
