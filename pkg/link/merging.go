package link

import (
	"bytes"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of SIOCETHTOOL and the set of strings that names features, from linux/ethtool.h.
const (
	ethtoolGetStrings    = 0x1b // ETHTOOL_GSTRINGS
	ethtoolGetStringSets = 0x37 // ETHTOOL_GSSET_INFO
	ethtoolGetFeatures   = 0x3a // ETHTOOL_GFEATURES
	ethtoolSetFeatures   = 0x3b // ETHTOOL_SFEATURES

	featureStrings = 4  // ETH_SS_FEATURES
	stringLength   = 32 // ETH_GSTRING_LEN
)

// mergingFeatures are those by which a device hands on several packets of a TCP connection as one
// that is longer than its MTU. What else merges (rx-gro-list, rx-udp-gro-forwarding) is a kind of
// rx-gro, and does nothing without it (netif_elide_gro of linux/netdevice.h).
var mergingFeatures = []string{"rx-gro", "rx-gro-hw", "rx-lro"}

// featureWord are 32 features of a device: struct ethtool_get_features_block of linux/ethtool.h.
type featureWord struct{ available, requested, active, neverChanged uint32 }

// maxFeatureWords is more than any kernel has.
const maxFeatureWords = 8

// Merging says which of the device's features that merge received packets are on, by their
// names in `ethtool -k`, and which of these cannot be switched off.
func (n *NS) Merging(name string) (on, fixed []string, err error) {
	bits, words, err := n.features(name)
	if err != nil {
		return nil, nil, fmt.Errorf("features of %s: %w", name, err)
	}
	on, fixed = mergingOf(bits, words)
	return on, fixed, nil
}

func mergingOf(bits map[string]int, words []featureWord) (on, fixed []string) {
	for _, feature := range mergingFeatures {
		bit, known := bits[feature]
		if !known || bit/32 >= len(words) {
			continue // the kernel has it not
		}
		word, mask := words[bit/32], uint32(1)<<(bit%32)
		if word.active&mask == 0 {
			continue
		}
		on = append(on, feature)
		if word.available&^word.neverChanged&mask == 0 {
			fixed = append(fixed, feature)
		}
	}
	return on, fixed
}

// SetMerging switches features that [NS.Merging] named. One that the device does not switch is
// no error: it is as it was.
func (n *NS) SetMerging(name string, features []string, on bool) error {
	bits, words, err := n.features(name)
	if err != nil {
		return fmt.Errorf("features of %s: %w", name, err)
	}
	// struct ethtool_sfeatures: the command, the number of words, and of each word which
	// features are meant and which of them are to be on.
	b := make([]uint32, 2+2*len(words))
	b[0], b[1] = ethtoolSetFeatures, uint32(len(words))
	for _, feature := range features {
		if bit, known := bits[feature]; known && bit/32 < len(words) && slices.Contains(mergingFeatures, feature) {
			mask := words[bit/32].available &^ words[bit/32].neverChanged & (1 << (bit % 32))
			b[2+2*(bit/32)] |= mask
			if on {
				b[3+2*(bit/32)] |= mask
			}
		}
	}
	if err := n.ethtoolAt(name, unsafe.Pointer(&b[0])); err != nil {
		return fmt.Errorf("switching %v of %s: %w", features, name, err)
	}
	return nil
}

// features are the numbers of features by name, and those of the device.
func (n *NS) features(name string) (bits map[string]int, words []featureWord, err error) {
	// struct ethtool_sset_info: command, a word unused, the sets asked for, their lengths.
	sets := struct {
		cmd, _ uint32
		mask   uint64
		length uint32
		_      uint32
	}{cmd: ethtoolGetStringSets, mask: 1 << featureStrings}
	if err := n.ethtoolAt(name, unsafe.Pointer(&sets)); err != nil {
		return nil, nil, err
	}
	// struct ethtool_gstrings: command, set, length, and the strings.
	const fixed = 12
	names := make([]uint32, (fixed+int(sets.length)*stringLength)/4)
	names[0], names[1], names[2] = ethtoolGetStrings, featureStrings, sets.length
	if err := n.ethtoolAt(name, unsafe.Pointer(&names[0])); err != nil {
		return nil, nil, err
	}
	text := unsafe.Slice((*byte)(unsafe.Pointer(&names[0])), 4*len(names))[fixed:]
	bits = make(map[string]int, sets.length)
	for i := range int(sets.length) {
		one, _, _ := bytes.Cut(text[i*stringLength:(i+1)*stringLength], []byte{0})
		bits[string(one)] = i
	}
	get := struct {
		cmd, size uint32
		words     [maxFeatureWords]featureWord
	}{cmd: ethtoolGetFeatures, size: maxFeatureWords}
	if err := n.ethtoolAt(name, unsafe.Pointer(&get)); err != nil {
		return nil, nil, err
	}
	if get.size > maxFeatureWords {
		return nil, nil, fmt.Errorf("the kernel has %d words of features, and %d are known: %w", get.size, maxFeatureWords, unix.E2BIG)
	}
	return bits, slices.Clone(get.words[:get.size]), nil
}
