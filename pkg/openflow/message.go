package openflow

import (
	"encoding/binary"
	"fmt"
)

// version is OpenFlow 1.4's on the wire.
const version = 0x05

// Protocol is the version that this package speaks, as Open vSwitch calls it (column protocols of table Bridge).
const Protocol = "OpenFlow14"

// headerSize is the length of ofp_header (OpenFlow 1.4, section 7.1).
const headerSize = 8

// maxMessage is the longest message: its length has 16 bits.
const maxMessage = 0xffff

// msgType is OFPT_* (OpenFlow 1.4, section 7.1.1).
type msgType uint8

const (
	msgHello            msgType = 0
	msgError            msgType = 1
	msgEchoRequest      msgType = 2
	msgEchoReply        msgType = 3
	msgExperimenter     msgType = 4
	msgGetConfigRequest msgType = 7
	msgGetConfigReply   msgType = 8
	msgSetConfig        msgType = 9
	msgPacketIn         msgType = 10
	msgPortStatus       msgType = 12
	msgPacketOut        msgType = 13
	msgFlowMod          msgType = 14
	msgGroupMod         msgType = 15
	msgPortMod          msgType = 16
	msgMultipartRequest msgType = 18
	msgMultipartReply   msgType = 19
	msgBarrierRequest   msgType = 20
	msgBarrierReply     msgType = 21
	msgSetAsync         msgType = 28
	msgMeterMod         msgType = 29
	msgRequestForward   msgType = 32
	msgBundleControl    msgType = 33
	msgBundleAdd        msgType = 34
)

// message is a message without its header.
type message struct {
	typ  msgType
	xid  uint32
	body []byte
}

// appendMessageHeader starts a message whose length [finishMessage] fills in.
func appendMessageHeader(b []byte, t msgType, xid uint32) []byte {
	b = append(b, version, byte(t), 0, 0)
	return binary.BigEndian.AppendUint32(b, xid)
}

// finishMessage fills in the length of the message that begins at start. The
// caller sees to it that it fits: see [checkLength].
func finishMessage(b []byte, start int) []byte {
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	return b
}

// header is an ofp_header.
type header struct {
	version uint8
	typ     msgType
	length  int
	xid     uint32
}

// decodeHeader reads the 8 bytes that every message begins with.
func decodeHeader(b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, fmt.Errorf("message header: %w", errShort)
	}
	h := header{b[0], msgType(b[1]), int(binary.BigEndian.Uint16(b[2:])), binary.BigEndian.Uint32(b[4:])}
	if h.length < headerSize {
		return h, fmt.Errorf("message of type %d has length %d, less than its header", h.typ, h.length)
	}
	return h, nil
}

// multipartType is OFPMP_* (OpenFlow 1.4, section 7.3.5).
type multipartType uint16

const (
	multipartDesc        multipartType = 0
	multipartFlow        multipartType = 1
	multipartGroupDesc   multipartType = 7
	multipartMeterStats  multipartType = 9
	multipartMeterConfig multipartType = 10
	multipartPortDesc    multipartType = 13
	multipartFlowMonitor multipartType = 16

	multipartMore = 1 // in flags: another part follows
)

// multipartHeadSize is the length of what a multipart message has before its body.
const multipartHeadSize = 8

func appendMultipartRequest(b []byte, xid uint32, t multipartType, body []byte) []byte {
	start := len(b)
	b = appendMessageHeader(b, msgMultipartRequest, xid)
	b = binary.BigEndian.AppendUint16(b, uint16(t))
	b = append(b, 0, 0, 0, 0, 0, 0)
	return finishMessage(append(b, body...), start)
}

// cutMultipart reads the head of a multipart reply.
func cutMultipart(b []byte) (t multipartType, more bool, body []byte, err error) {
	if len(b) < multipartHeadSize {
		return 0, false, nil, fmt.Errorf("multipart reply: %w", errShort)
	}
	flags := binary.BigEndian.Uint16(b[2:])
	return multipartType(binary.BigEndian.Uint16(b)), flags&multipartMore != 0, b[multipartHeadSize:], nil
}

// cutRecord cuts the first record off b, which says its own length in the 16
// bits at offset at and has at least min bytes.
func cutRecord(b []byte, what string, at, min int) (one, rest []byte, err error) {
	if len(b) < at+2 {
		return nil, nil, fmt.Errorf("%s: %w", what, errShort)
	}
	n := int(binary.BigEndian.Uint16(b[at:]))
	if n < min || n > len(b) {
		return nil, nil, fmt.Errorf("%s of %d bytes, not %d to %d", what, n, min, len(b))
	}
	return b[:n], b[n:], nil
}
