package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/cniconf"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/cniserver"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/statefile"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniplugins"
)

// stateDir is the directory that the agent keeps its state in.
type stateDir string

// Look returns an error where only a new start brings it back.
func (d stateDir) Look() error {
	if err := statefile.Look(string(d)); err != nil {
		return fmt.Errorf("the agent's state directory: %w", err)
	}
	return nil
}

// runtimeSide is what the container runtime reaches the agent by.
type runtimeSide struct {
	conf *cniconf.Kept
	// plugins is nil where they are not the agent's to keep.
	plugins *cniplugins.Kept
	socket  *cniserver.Server
}

// way is what a pass looks at.
func (r runtimeSide) way(state string) *runtimeWay {
	w := &runtimeWay{conf: r.conf, socket: r.socket, state: stateDir(state)}
	if r.plugins != nil {
		w.plugins = r.plugins
	}
	return w
}

// runtimeWay keeps the container runtime's way to the agent open: configuration, plugin, socket.
type runtimeWay struct {
	// conf says whether the runtime takes our configuration; [cniconf.Kept] does.
	conf interface{ First() error }
	// plugins puts back the runtime's plugins; [cniplugins.Kept] does. Nil where they are not the agent's to keep.
	plugins interface {
		Ensure() error
		Dir() string
	}
	// socket puts back the socket that the plugin calls; [cniserver.Server] does.
	socket interface{ Keep() error }
	// state is the state directory, without which no pod can come either; [stateDir] looks.
	state interface{ Look() error }

	looked bool
	why    error
}

// look puts back what somebody took away, the state directory too, and says why pods do not come to the agent. It ends the agent where only a new start of its
// container helps.
func (w *runtimeWay) look(_ context.Context, p *pass) error {
	if p.full || w.why != nil || !w.looked {
		p.beside(func() { w.why = w.mend() })
		w.looked = true
	}
	if errors.Is(w.why, detached.Err) {
		return w.why
	}
	p.unwell = cmp.Or(p.unwell, w.why)
	return nil
}

// mend does all that it can, and returns the first reason.
func (w *runtimeWay) mend() error {
	socket, conf := w.socket.Keep(), w.conf.First()
	var plugins error
	if w.plugins != nil {
		plugins = detached.Explain(w.plugins.Dir(), w.plugins.Ensure())
	}
	return cmp.Or(w.state.Look(), socket, plugins, conf)
}
