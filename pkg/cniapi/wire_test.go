package cniapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.IgnoreUnexported(Error{}),
}

func TestRequestRoundTrip(t *testing.T) {
	for _, cmd := range []Command{Add, Del, Check, GC, Status} {
		want := valid(cmd)
		want.Bandwidth = &Bandwidth{IngressRate: 1 << 63, EgressRate: 5, EgressBurst: 6}
		var buf bytes.Buffer
		if err := WriteRequest(&buf, want); err != nil {
			t.Fatal(err)
		}
		got, err := ReadRequest(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, compare); diff != "" {
			t.Errorf("%s (-want +got):\n%s", cmd, diff)
		}
	}
}

func TestResponseRoundTrip(t *testing.T) {
	for name, want := range map[string]Response{
		"nothing": {Version: Version},
		"error":   {Version: Version, Error: &Error{Code: 11, Msg: "m", Details: "d"}},
		"result":  {Version: Version, Result: goodResult()},
	} {
		var buf bytes.Buffer
		if err := WriteResponse(&buf, want); err != nil {
			t.Fatal(err)
		}
		got, err := ReadResponse(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, compare); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func goodResult() *Result {
	return &Result{
		HostIfName: "veth0a1b", HostMAC: MAC{2, 0, 0, 0, 0, 1},
		SandboxIfName: "eth0", MAC: MAC{0x0a, 0x58, 172, 11, 0, 5}, Sandbox: "/var/run/netns/x",
		IPs:    []IP{{Address: netip.MustParsePrefix("172.11.0.5/32"), Gateway: netip.MustParseAddr("172.11.0.1")}},
		Routes: []Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: netip.MustParseAddr("172.11.0.1"), MTU: 1450}},
		MTU:    1450,
	}
}

// TestWireForm pins the text on the wire: an agent must understand plugins of
// earlier releases.
func TestWireForm(t *testing.T) {
	req := Request{Command: GC, NetworkName: "n", ValidAttachments: []Attachment{}}
	var buf bytes.Buffer
	if err := WriteRequest(&buf, req); err != nil {
		t.Fatal(err)
	}
	if err := WriteResponse(&buf, Response{Result: goodResult()}); err != nil {
		t.Fatal(err)
	}
	const want = `{"version":1,"command":"GC","networkName":"n","validAttachments":[]}
{"version":1,"result":{"hostIfName":"veth0a1b","hostMAC":"02:00:00:00:00:01","sandboxIfName":"eth0","mac":"0a:58:ac:0b:00:05","sandbox":"/var/run/netns/x","routes":[{"dst":"0.0.0.0/0","gw":"172.11.0.1","mtu":1450}],"mtu":1450,"address":"172.11.0.5/32","gateway":"172.11.0.1"}}
`
	if diff := cmp.Diff(want, buf.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestReleaseBefore: a plugin of the release before, which knows one address, finds it in every
// result; and what an agent of that release answers is read.
func TestReleaseBefore(t *testing.T) {
	one, two := goodResult(), goodResult()
	two.IPs = append(two.IPs, IP{Address: netip.MustParsePrefix("fd00:1:2:3::ac0b:5/128"), Gateway: netip.MustParseAddr("fd00:1:2:3::ac0b:1")})
	for name, want := range map[string]*Result{"one address": one, "two": two} {
		var buf bytes.Buffer
		if err := WriteResponse(&buf, Response{Result: want}); err != nil {
			t.Fatal(err)
		}
		var old struct {
			Result struct {
				Address netip.Prefix `json:"address"`
				Gateway netip.Addr   `json:"gateway"`
			} `json:"result"`
		}
		if err := json.Unmarshal(buf.Bytes(), &old); err != nil || old.Result.Address != want.IPs[0].Address || old.Result.Gateway != want.IPs[0].Gateway {
			t.Errorf("%s: the plugin of the release before reads %+v: %v", name, old.Result, err)
		}
		got, err := ReadResponse(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got.Result, compare); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	const before = `{"version":1,"result":{"hostIfName":"veth0a1b","hostMAC":"02:00:00:00:00:01","sandboxIfName":"eth0","mac":"0a:58:ac:0b:00:05","sandbox":"/var/run/netns/x","address":"172.11.0.5/32","gateway":"172.11.0.1","routes":[{"dst":"0.0.0.0/0","gw":"172.11.0.1","mtu":1450}],"mtu":1450}}`
	got, err := ReadResponse(strings.NewReader(before))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(one, got.Result, compare); diff != "" {
		t.Errorf("of an agent of the release before (-want +got):\n%s", diff)
	}
	if _, err := ReadResponse(strings.NewReader(`{"result":{"address":"172.11.0.5/32","ips":[{"address":"172.11.0.6/32"}]}}`)); err == nil {
		t.Error("two first addresses are taken")
	}
}

func TestReadErrors(t *testing.T) {
	huge := `{"version":1,"podName":"` + strings.Repeat("a", MaxMessage) + `"}`
	for name, tc := range map[string]struct {
		in   io.Reader
		code uint
		is   error
	}{
		"nothing":         {strings.NewReader(""), 0, io.EOF},
		"only a newline":  {strings.NewReader("\n"), 0, io.EOF},
		"too large":       {strings.NewReader(huge), CodeDecode, ErrTooLarge},
		"endless space":   {repeated(' '), CodeDecode, ErrTooLarge},
		"endless nesting": {repeated('['), CodeDecode, nil},
		"cut":             {strings.NewReader(`{"version":`), CodeIO, io.ErrUnexpectedEOF},
		"not JSON":        {strings.NewReader("GET / HTTP/1.1\r\n\r\n"), CodeDecode, nil},
		"other form":      {strings.NewReader(`[]`), CodeDecode, nil},
		"field's form":    {strings.NewReader(`{"bandwidth":{"ingressRate":-1}}`), CodeDecode, nil},
		"address's form":  {strings.NewReader(`{"prevResult":{"ips":[{"address":"1.2.3"}]}}`), CodeDecode, nil},
		"reader's own":    {io.MultiReader(strings.NewReader(`{`), broken{}), CodeIO, context.DeadlineExceeded},
		"cut in a string": {strings.NewReader("{\"podName\":\"\xff"), CodeIO, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadRequest(tc.in)
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error is %v, want %v", err, tc.is)
			}
			var e *Error
			if tc.code != 0 && (!errors.As(err, &e) || e.Code != tc.code) {
				t.Errorf("error is %#v, want code %d", err, tc.code)
			}
		})
	}
}

type repeated byte

func (c repeated) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(c)
	}
	return len(p), nil
}

type broken struct{}

// context.DeadlineExceeded has Timeout(), as a socket's error does.
func (broken) Read([]byte) (int, error) { return 0, context.DeadlineExceeded }

func TestWriteRefusesTooLarge(t *testing.T) {
	var buf bytes.Buffer
	req := Request{Command: GC, NetworkName: "n"}
	for i := range 100_000 {
		req.ValidAttachments = append(req.ValidAttachments, Attachment{ContainerID: fmt.Sprint("c", i), IfName: "eth0"})
	}
	if err := WriteRequest(&buf, req); !errors.Is(err, ErrTooLarge) || buf.Len() != 0 {
		t.Errorf("error %v with %d bytes written; want ErrTooLarge and none", err, buf.Len())
	}
}

func TestAsError(t *testing.T) {
	base := Errorf(CodeTryAgain, "namespace %s is unknown", "a").WithDetails("wait")
	for name, tc := range map[string]struct {
		err  error
		want *Error
	}{
		"nil":      {nil, nil},
		"itself":   {base, &Error{Code: 11, Msg: "namespace a is unknown", Details: "wait"}},
		"wrapped":  {fmt.Errorf("attaching x: %w", base), &Error{Code: 11, Msg: "attaching x: namespace a is unknown", Details: "wait"}},
		"deadline": {fmt.Errorf("x: %w", context.DeadlineExceeded), &Error{Code: 11, Msg: "x: context deadline exceeded"}},
		"other":    {errors.New("x"), &Error{Code: 999, Msg: "x"}},
	} {
		if diff := cmp.Diff(tc.want, AsError(tc.err), compare); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if tc.err != nil && !errors.Is(AsError(tc.err), tc.err) {
			t.Errorf("%s: the cause is lost", name)
		}
	}
	if cause := io.EOF; !errors.Is(Errorf(CodeIO, "reading: %w", cause).WithDetails("d"), cause) {
		t.Error("Errorf and WithDetails lose the cause")
	}
}

func FuzzRequest(f *testing.F) {
	for _, cmd := range []Command{Add, Del, Check, GC, Status} {
		var buf bytes.Buffer
		if err := WriteRequest(&buf, valid(cmd)); err != nil {
			f.Fatal(err)
		}
		f.Add(buf.Bytes())
	}
	f.Add([]byte(`{"version":1,"command":"GC","networkName":"n","validAttachments":null}`))
	f.Add([]byte(`{"version":1,"command":"CHECK","prevResult":{"ips":[{"address":"","interface":9}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		req, err := ReadRequest(bytes.NewReader(data))
		if err != nil || req.Validate() != nil {
			return
		}
		// What is valid is the same after another trip, and as safe as it must be.
		var buf bytes.Buffer
		if err := WriteRequest(&buf, req); err != nil {
			t.Fatal(err)
		}
		again, err := ReadRequest(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(req, again, compare, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("changed on the wire (-before +after):\n%s", diff)
		}
		if req.Command == Add && (strings.ContainsAny(req.IfName, "/: %") || len(req.IfName) > 15 || req.PodNamespace == "" ||
			strings.ContainsAny(req.ContainerID, "/ \n") || !strings.HasPrefix(req.Netns, "/")) {
			t.Errorf("accepted %+v", req)
		}
		if req.Command == GC && req.ValidAttachments == nil {
			t.Error("accepted a GC without a list")
		}
	})
}

// The runtime sees errors as JSON; the cause stays here.
func TestErrorJSON(t *testing.T) {
	data, err := json.Marshal(Errorf(CodeIO, "x: %w", io.EOF))
	if want := `{"code":5,"msg":"x: EOF"}`; err != nil || string(data) != want {
		t.Errorf("got %s, %v; want %s", data, err, want)
	}
}
