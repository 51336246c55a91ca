package ovs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ErrNoControl: the control socket of ovs-vswitchd is not in its run directory.
var ErrNoControl = errors.New("ovs-vswitchd has no control socket in its run directory")

// AskRevalidated asks ovs-vswitchd to tell when it has gone once through the flows that it
// cached in the datapath, comparing them with its tables; it does not make it begin. It
// returns when the question is out, and wait, which must be called, when the answer is there
// or ctx has ended. The round may have begun before the question; but where flows are
// changed after it, the one that this brings about is not over before ovs-vswitchd has
// read it. (revalidator/wait, ovs-vswitchd(8); it cannot be told on a machine with bridges
// of several datapath types.)
func (c *Client) AskRevalidated(ctx context.Context) (wait func() error, err error) {
	k, err := c.askAgain(ctx, "revalidator/wait")
	if err != nil {
		return nil, fmt.Errorf("ask for ovs-vswitchd's cached flows: %w", err)
	}
	return func() error {
		if _, err := k.answer(ctx); err != nil {
			_ = k.Close()
			return fmt.Errorf("wait for ovs-vswitchd's cached flows: %w", err)
		}
		c.keepControl(k)
		return nil
	}, nil
}

// askAgain begins a command on the connection of the last, or on a new one: to accept one and to
// see it end takes ovs-vswitchd as long as the command.
func (c *Client) askAgain(ctx context.Context, method string) (*control, error) {
	if k := c.kept.Swap(nil); k != nil {
		if err := k.ask(method); err == nil {
			return k, nil
		}
		_ = k.Close() // that of an ovs-vswitchd which has ended
	}
	k, err := c.dialControl(ctx)
	if err != nil {
		return nil, err
	}
	if err := k.ask(method); err != nil {
		_ = k.Close()
		return nil, err
	}
	return k, nil
}

// keepControl keeps a connection for the next command; nil for none.
func (c *Client) keepControl(k *control) {
	if old := c.kept.Swap(k); old != nil {
		_ = old.Close()
	}
}

// control runs one command of ovs-vswitchd.
func (c *Client) control(ctx context.Context, method string, args ...string) (string, error) {
	k, err := c.dialControl(ctx)
	if err != nil {
		return "", err
	}
	defer k.Close()
	if err := k.ask(method, args...); err != nil {
		return "", err
	}
	return k.answer(ctx)
}

// control is a connection to ovs-vswitchd's control socket: JSON-RPC, as ovs-appctl(8) speaks it,
// one command after the other.
type control struct {
	net.Conn
	method  string // the newest
	replies *json.Decoder
}

// ask begins a command. What it writes has room in the socket: nothing else is under way.
func (k *control) ask(method string, args ...string) error {
	if args == nil {
		args = []string{}
	}
	k.method = method
	return json.NewEncoder(k.Conn).Encode(map[string]any{"id": 0, "method": method, "params": args})
}

// answer waits for what the command says. After an error the connection is of no use.
func (k *control) answer(ctx context.Context) (string, error) {
	stop := context.AfterFunc(ctx, func() { _ = k.SetDeadline(time.Unix(1, 0)) })
	var reply struct {
		Result *string `json:"result"`
		Error  *string `json:"error"`
	}
	err := k.replies.Decode(&reply)
	if !stop() || err != nil {
		return "", errors.Join(err, context.Cause(ctx))
	}
	switch {
	case reply.Error != nil:
		return "", fmt.Errorf("%s: %s", k.method, strings.TrimSpace(*reply.Error))
	case reply.Result == nil:
		return "", fmt.Errorf("%s: an answer without a result", k.method)
	}
	return *reply.Result, nil
}

// dialControl connects to the socket that the pid file names, else to whichever
// in the run directory answers: one of a daemon that died refuses.
func (c *Client) dialControl(ctx context.Context) (*control, error) {
	var candidates []string
	pid, err := os.ReadFile(filepath.Join(c.runDir, "ovs-vswitchd.pid"))
	if err == nil {
		candidates = append(candidates, filepath.Join(c.runDir, "ovs-vswitchd."+strings.TrimSpace(string(pid))+".ctl"))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(c.runDir, "ovs-vswitchd*.ctl"))
	if err != nil {
		return nil, err
	}
	why := fmt.Errorf("%w (%s)", ErrNoControl, c.runDir)
	for _, path := range append(candidates, found...) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return &control{Conn: conn, replies: json.NewDecoder(conn)}, nil
		}
		why = err
	}
	return nil, why
}
