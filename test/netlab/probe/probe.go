// Package probe is the lab's measuring instrument: one program that sends from
// every pod to every other, numbers what it sends, and sees at the receiver what
// was delivered.
//
// [Prober.Matrix] asks once who reaches whom. [Prober.Start] keeps sending and
// counts, for each ordered pair and protocol, what was lost that had to arrive
// and what was delivered that may not: also one way, also when no answer comes back.
//
// Sockets are made in the pods' namespaces and used from anywhere; the pods
// themselves run nothing.
package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Endpoint is a pod that takes part.
type Endpoint struct {
	// Namespace, Name and Node only name it in reports; rules usually look at Namespace.
	Namespace, Name, Node string
	IP                    netip.Addr
	// Sandbox is the path of its network namespace.
	Sandbox string
}

func (e Endpoint) String() string { return e.Namespace + "/" + e.Name }

// Protocol is a way to reach an endpoint.
type Protocol uint8

const (
	// Ping is an ICMP echo request and its reply by the receiver's kernel.
	Ping Protocol = iota
	// UDP is a datagram and, in a matrix, one in answer.
	UDP
	// TCP is a connection with one request and one answer.
	TCP
	// HTTP is a GET, in a matrix only.
	HTTP
	// Stream is a connection that stays, in a run only: one numbered message
	// after the other.
	Stream

	protocols
)

var protocolNames = [protocols]string{"ping", "UDP", "TCP", "HTTP", "stream"}

func (p Protocol) String() string { return protocolNames[p] }

// header is what every message begins with.
type header struct {
	session  uint32 // of the Prober; others' packets are not ours to judge
	kind     uint8
	from, to uint16 // indexes of endpoints
	seq      uint64
	sent     time.Time
}

// Kinds of messages.
const (
	kindRequest uint8 = iota + 1 // asks for an answer
	kindAnswer
	kindOneWay // numbered, of a run
	kindAsked  // the same, and asks for an answer
)

const (
	headerLen = 32
	magic     = 0x6b386f76 // "k8ov"
)

func (h header) encode() []byte {
	b := make([]byte, headerLen)
	binary.BigEndian.PutUint32(b[0:], magic)
	binary.BigEndian.PutUint32(b[4:], h.session)
	b[8] = h.kind
	binary.BigEndian.PutUint16(b[10:], h.from)
	binary.BigEndian.PutUint16(b[12:], h.to)
	binary.BigEndian.PutUint64(b[16:], h.seq)
	binary.BigEndian.PutUint64(b[24:], uint64(h.sent.UnixNano()))
	return b
}

var errNotOurs = errors.New("not a message of this probe")

func decodeHeader(b []byte) (header, error) {
	if len(b) < headerLen || binary.BigEndian.Uint32(b) != magic {
		return header{}, errNotOurs
	}
	return header{
		session: binary.BigEndian.Uint32(b[4:]),
		kind:    b[8],
		from:    binary.BigEndian.Uint16(b[10:]),
		to:      binary.BigEndian.Uint16(b[12:]),
		seq:     binary.BigEndian.Uint64(b[16:]),
		sent:    time.Unix(0, int64(binary.BigEndian.Uint64(b[24:]))),
	}, nil
}

// Prober has sockets in all endpoints. Close frees them.
type Prober struct {
	endpoints []Endpoint
	stations  []*station
	byIP      map[netip.Addr]int
	session   uint32
	through   func(to int, p Protocol) netip.AddrPort
	wg        sync.WaitGroup

	mu   sync.Mutex
	sink sink // who wants to know what arrives; nil between measurements
}

// sink takes what stations see. Its methods are called from many goroutines.
type sink interface {
	// delivered: the message h reached endpoint at by protocol p.
	delivered(p Protocol, h header, at int)
	// syn: the first segment of a connection from the address of endpoint from
	// reached endpoint at.
	syn(p Protocol, from, at int)
	// answered: the answer to h came back to its sender.
	answered(p Protocol, h header)
}

// Open makes the sockets of all endpoints.
func Open(endpoints []Endpoint) (*Prober, error) {
	if len(endpoints) > 1<<16 {
		return nil, fmt.Errorf("probe: %d endpoints are too many", len(endpoints))
	}
	p := &Prober{endpoints: endpoints, byIP: map[netip.Addr]int{}, session: newSession()}
	for i, e := range endpoints {
		if other, ok := p.byIP[e.IP]; ok {
			return nil, errors.Join(fmt.Errorf("probe: %s and %s both have address %s", endpoints[other], e, e.IP), p.Close())
		}
		p.byIP[e.IP] = i
	}
	for i := range endpoints {
		s, err := openStation(p, i)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("probe: %s: %w", endpoints[i], err), p.Close())
		}
		p.stations = append(p.stations, s)
	}
	for _, s := range p.stations {
		s.listen()
	}
	return p, nil
}

// Close closes all sockets and waits for what served them.
func (p *Prober) Close() error {
	var errs []error
	for _, s := range p.stations {
		errs = append(errs, s.close())
	}
	p.wg.Wait()
	return errors.Join(errs...)
}

// Endpoints in the order given to Open.
func (p *Prober) Endpoints() []Endpoint { return p.endpoints }

// Port is where an endpoint, given by its place, listens for a protocol.
func (p *Prober) Port(of int, proto Protocol) uint16 { return uint16(p.stations[of].ports[proto]) }

// Through has everybody ask others at other addresses than their own, as services have, which lead to
// where they listen. It comes before anything is sent. Pings, which have no port, go where they went.
func (p *Prober) Through(address func(to int, p Protocol) netip.AddrPort) { p.through = address }

// address is where an endpoint is asked.
func (p *Prober) address(to int, proto Protocol) netip.AddrPort {
	if p.through != nil {
		return p.through(to, proto)
	}
	return netip.AddrPortFrom(p.endpoints[to].IP, p.Port(to, proto))
}

func (p *Prober) setSink(s sink) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sink = s
}

func (p *Prober) getSink() sink {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sink
}

// ours reports whether a message is one of this prober's endpoints'.
func (p *Prober) ours(h header) bool {
	return h.session == p.session && int(h.from) < len(p.endpoints) && int(h.to) < len(p.endpoints)
}
