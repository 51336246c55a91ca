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
	answer, err := c.ask(ctx, "revalidator/wait")
	if err != nil {
		return nil, fmt.Errorf("ask for ovs-vswitchd's cached flows: %w", err)
	}
	return func() error {
		if _, err := answer(); err != nil {
			return fmt.Errorf("wait for ovs-vswitchd's cached flows: %w", err)
		}
		return nil
	}, nil
}

// control runs one command of ovs-vswitchd.
func (c *Client) control(ctx context.Context, method string, args ...string) (string, error) {
	answer, err := c.ask(ctx, method, args...)
	if err != nil {
		return "", err
	}
	return answer()
}

// ask begins one command of ovs-vswitchd: JSON-RPC over its control socket, as
// ovs-appctl(8) does. answer waits for what it says, and must be called.
func (c *Client) ask(ctx context.Context, method string, args ...string) (answer func() (string, error), err error) {
	conn, err := c.dialControl(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	end := func() {
		stop()
		_ = conn.Close()
	}
	if args == nil {
		args = []string{}
	}
	request := map[string]any{"id": 0, "method": method, "params": args}
	if err := json.NewEncoder(conn).Encode(request); err != nil {
		end()
		return nil, errors.Join(err, context.Cause(ctx))
	}
	return func() (string, error) {
		defer end()
		var reply struct {
			Result *string `json:"result"`
			Error  *string `json:"error"`
		}
		if err := json.NewDecoder(conn).Decode(&reply); err != nil {
			return "", errors.Join(err, context.Cause(ctx))
		}
		switch {
		case reply.Error != nil:
			return "", fmt.Errorf("%s: %s", method, strings.TrimSpace(*reply.Error))
		case reply.Result == nil:
			return "", fmt.Errorf("%s: an answer without a result", method)
		}
		return *reply.Result, nil
	}, nil
}

// dialControl connects to the socket that the pid file names, else to whichever
// in the run directory answers: one of a daemon that died refuses.
func (c *Client) dialControl(ctx context.Context) (net.Conn, error) {
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
			return conn, nil
		}
		why = err
	}
	return nil, why
}
