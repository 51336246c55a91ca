package link

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of SIOCETHTOOL, from linux/ethtool.h.
const (
	ethtoolGetTxChecksum = 0x16 // ETHTOOL_GTXCSUM
	ethtoolSetTxChecksum = 0x17 // ETHTOOL_STXCSUM
	ethtoolSetTSO        = 0x1f // ETHTOOL_STSO
	ethtoolGetGSO        = 0x23 // ETHTOOL_GGSO
	ethtoolSetGSO        = 0x24 // ETHTOOL_SGSO
	ethtoolGetGRO        = 0x2b // ETHTOOL_GGRO
	ethtoolSetGRO        = 0x2c // ETHTOOL_SGRO
)

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct {
	cmd  uint32
	data uint32
}

// ifreqData is struct ifreq of linux/if.h with ifr_data, 40 bytes.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

// SetOffloads switches transmit checksums and segmentation of a device. Generic
// segmentation goes with them: the first two leave the segmentation of SCTP and of
// tunnels to the device, and TCP is no slower for it (measured on veth).
func (n *NS) SetOffloads(name string, on bool) error {
	var data uint32
	if on {
		data = 1
	}
	for _, cmd := range []uint32{ethtoolSetTxChecksum, ethtoolSetTSO, ethtoolSetGSO} {
		if err := n.ethtool(name, &ethtoolValue{cmd: cmd, data: data}); err != nil {
			return fmt.Errorf("transmit offloads of %s: %w", name, err)
		}
	}
	return nil
}

// offloads reports whether any of them is on. ETHTOOL_GTSO is not asked: it also
// counts kinds of TCP segmentation that ETHTOOL_STSO does not switch, and that are not
// used without the plain one.
func (n *NS) offloads(name string) (bool, error) {
	for _, cmd := range []uint32{ethtoolGetTxChecksum, ethtoolGetGSO} {
		v := &ethtoolValue{cmd: cmd}
		if err := n.ethtool(name, v); err != nil {
			return false, fmt.Errorf("transmit offloads of %s: %w", name, err)
		}
		if v.data != 0 {
			return true, nil
		}
	}
	return false, nil
}

// EnsureNoGRO has a device hand packets on as it receives them, and reports whether it did not. It is for devices that
// merge by generic receive offload alone, such as veth: see [NS.Merging] for others.
func (n *NS) EnsureNoGRO(name string) (changed bool, err error) {
	v := &ethtoolValue{cmd: ethtoolGetGRO}
	if err = n.ethtool(name, v); err == nil && v.data != 0 {
		changed = true
		err = n.ethtool(name, &ethtoolValue{cmd: ethtoolSetGRO})
	}
	if err != nil {
		return false, fmt.Errorf("generic receive offload of %s: %w", name, err)
	}
	return changed, nil
}

func (n *NS) ethtool(name string, v *ethtoolValue) error {
	return n.ethtoolAt(name, unsafe.Pointer(v))
}

// ethtoolAt has the kernel carry out the command that is at p, which is long enough for the answer.
func (n *NS) ethtoolAt(name string, p unsafe.Pointer) error {
	req := ifreqData{data: p}
	if len(name) >= unix.IFNAMSIZ {
		return fmt.Errorf("%q: %w", name, ErrNoLink)
	}
	copy(req.name[:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(n.ctl), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno == unix.ENODEV {
		return fmt.Errorf("%w: %w", errno, ErrNoLink)
	}
	if errno != 0 {
		return errno
	}
	return nil
}
