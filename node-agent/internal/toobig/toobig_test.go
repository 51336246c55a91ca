package toobig

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

var gateway = netip.MustParseAddr("172.11.0.1")

// frame is a UDP datagram in an IP packet of n bytes, from 172.11.0.2 to 172.11.4.9.
func frame(n int) []byte {
	b, _ := hex.DecodeString("0a58ac0b0001" + "0a58ac0b0002" + "0800" + "45000000000040004011" + "0000" + "ac0b0002" + "ac0b0409" + "00351f90" + "00000000")
	b = append(b, make([]byte, max(0, n+ethernetHeader-len(b)))...)
	binary.BigEndian.PutUint16(b[ethernetHeader+2:], uint16(n))
	return b
}

func TestAnswer(t *testing.T) {
	got, ok := Packet{Frame: frame(1400), MTU: 1350}.Answer(gateway)
	if !ok {
		t.Fatal("no answer")
	}
	if len(got) != ethernetHeader+most {
		t.Errorf("%d bytes, want %d", len(got), ethernetHeader+most)
	}
	// Checksums: over a whole header they come to nothing.
	if ip := got[ethernetHeader:]; Checksum(ip[:ipHeader]) != 0 || Checksum(ip[ipHeader:]) != 0 {
		t.Errorf("checksums are wrong: %x", got[:60])
	}
	if quote := got[ethernetHeader+ipHeader+icmpHeader:]; !bytes.Equal(quote, frame(1400)[ethernetHeader:][:len(quote)]) {
		t.Errorf("quote %x", quote)
	}
	if want := "0a58ac0b0002" + "0a58ac0b0001" + "0800" + "45c00240000040004001"; !strings.HasPrefix(hex.EncodeToString(got), want) {
		t.Errorf("%x, want it to begin with %s", got, want)
	}
	if want := []byte{3, 4, 0, 0, 1350 >> 8, 1350 & 0xff}; !bytes.Equal(append(got[34:36:36], got[38:42]...), want) {
		t.Errorf("ICMP header %x", got[34:42])
	}
}

// What was translated on the way stands in the answer as it was sent.
func TestAnswerTranslated(t *testing.T) {
	p := Packet{Frame: frame(1400), MTU: 1350, SentTo: netip.MustParseAddrPort("10.96.0.10:80")}
	before := bytes.Clone(p.Frame)
	got, _ := p.Answer(gateway)
	quote := got[ethernetHeader+ipHeader+icmpHeader:]
	if Checksum(quote[:ipHeader]) != 0 || !bytes.Equal(quote[16:20], []byte{10, 96, 0, 10}) || !bytes.Equal(quote[20:24], []byte{0, 0x35, 0, 80}) {
		t.Errorf("quote %x", quote[:28])
	}
	if !bytes.Equal(p.Frame, before) {
		t.Error("the packet itself changed")
	}
}

func TestNoAnswer(t *testing.T) {
	set := func(values ...byte) func([]byte) { // pairs of offset in the IP header and value
		return func(b []byte) {
			for i := 0; i < len(values); i += 2 {
				b[ethernetHeader+int(values[i])] = values[i+1]
			}
		}
	}
	for name, change := range map[string]func([]byte){
		"may be fragmented":           set(6, 0),
		"a later fragment":            set(6, 0x40, 7, 9),
		"from multicast":              set(12, 224),
		"to multicast":                set(16, 239),
		"to broadcast":                set(16, 255, 17, 255, 18, 255, 19, 255),
		"from loopback":               set(12, 127),
		"an ICMP error":               set(9, 1, 20, 3),
		"a redirect":                  set(9, 1, 20, 5),
		"not IPv4":                    func(b []byte) { b[12] = 0x86 },
		"another version":             set(0, 0x65),
		"a header too short":          set(0, 0x44),
		"longer than the frame":       set(2, 0xff),
		"shorter than its own header": set(2, 0, 3, 19),
		"small enough":                set(2, 1350>>8, 3, 1350&0xff),
	} {
		b := frame(1400)
		change(b)
		if got, ok := (Packet{Frame: b, MTU: 1350}).Answer(gateway); ok {
			t.Errorf("%s: answered with %x", name, got)
		}
	}
	echo := frame(1400)
	set(9, 1, 20, 8)(echo)
	if _, ok := (Packet{Frame: echo, MTU: 1350}).Answer(gateway); !ok {
		t.Error("an echo request is not answered")
	}
	for n := range ethernetHeader + ipHeader {
		if _, ok := (Packet{Frame: frame(1400)[:n], MTU: 1350}).Answer(gateway); ok {
			t.Errorf("a frame of %d bytes is answered", n)
		}
	}
}
