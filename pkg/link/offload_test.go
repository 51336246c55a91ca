package link

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// With offloads off the other end gets finished packets, none larger than the MTU.
func TestOffloadsOff(t *testing.T) {
	node, sandbox := space(t), space(t)
	noErr(t, node.CreateVeth("ovs1", sandbox, pair))
	_, err := sandbox.ConfigureSandbox(pod)
	noErr(t, err)
	features, err := exec.Command("ip", "netns", "exec", nameOf(sandbox), "ethtool", "-k", "eth0").Output()
	if err == nil {
		for _, want := range []string{"tx-checksumming: off", "tx-tcp-segmentation: off", "generic-segmentation-offload: off"} {
			if !strings.Contains(string(features), want) {
				t.Errorf("ethtool -k lacks %q:\n%s", want, features)
			}
		}
	}
	noErr(t, sandbox.SetOffloads("eth0", true))
	diffs, err := sandbox.CheckSandbox(pod)
	noErr(t, err)
	if len(diffs) != 1 || !strings.Contains(diffs[0], "offload") {
		t.Errorf("offloads on: differences %v", diffs)
	}
	// TCP in bulk to a listener at the host end; a packet socket there sees what a switch would.
	noErr(t, sandbox.SetOffloads("eth0", false))
	noErr(t, node.Loud("ovs1"))
	ip(t, node, "addr add 172.11.0.1/32 dev ovs1")
	ip(t, node, "link set ovs1 address 0a:58:ac:0b:00:01")
	ip(t, node, "route add 172.11.0.5 dev ovs1")
	largest, bad := sniffBulk(t, node, sandbox)
	if largest > 1450+14 || bad > 0 || largest < 1000 {
		t.Errorf("largest frame %d bytes, %d with unfinished checksum; want at most 1464 and none", largest, bad)
	}
}

// sniffBulk sends 1 MB of TCP from the sandbox to 172.11.0.1 and returns the
// size of the largest frame that a packet socket on ovs1 got, and how many lacked
// their checksum (TP_STATUS_CSUMNOTREADY of linux/if_packet.h).
func sniffBulk(t *testing.T, node, sandbox *NS) (largest, unfinished int) {
	t.Helper()
	var fd int
	l, _, err := node.Link("ovs1")
	noErr(t, err)
	noErr(t, node.Do(func() (err error) {
		const all = 0x0300 // htons(ETH_P_ALL)
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1)
		tv := unix.Timeval{Usec: 300_000}
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Index})
	}))
	defer unix.Close(fd)
	listener, err := ns.ListenTCP(node.Path(), "172.11.0.1:8000")
	noErr(t, err)
	defer listener.Close()
	go func() {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		buf := make([]byte, 1<<16)
		for err == nil {
			_, err = c.Read(buf)
		}
		_ = c.Close()
	}()
	c, err := ns.DialTCP(sandbox.Path(), "172.11.0.1:8000", 5*time.Second)
	noErr(t, err)
	_, err = c.Write(make([]byte, 1<<20))
	noErr(t, err)
	_ = c.Close()
	buf, oob := make([]byte, 1<<17), make([]byte, 256)
	for {
		n, oobn, _, from, err := unix.Recvmsg(fd, buf, oob, unix.MSG_TRUNC)
		if err != nil {
			return largest, unfinished
		}
		if a, ok := from.(*unix.SockaddrLinklayer); !ok || a.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		largest = max(largest, n)
		if cm, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(cm) > 0 && cm[0].Data[0]&8 != 0 {
			unfinished++
		}
	}
}
