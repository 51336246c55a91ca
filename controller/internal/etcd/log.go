package etcd

import (
	"context"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

// bridge is a zap core that hands etcd's warnings and errors to slog. What etcd
// has to say at level info is for people who look after etcd: it becomes debug.
type bridge struct {
	handler slog.Handler
	// closing ends when etcd is about to be stopped: what it says of that is no
	// trouble.
	closing context.Context
}

func level(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// quiet are warnings about what is so on purpose here.
var quiet = map[string]bool{
	// One port for both is what clients of a small etcd expect.
	"Running http and grpc server on single port. This is not recommended for production.": true,
	// Who calls through the unix socket is root: see guard.
	"scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL": true,
	// Clients try again.
	"request auth revision is less than current node auth revision": true,
	// Tokens end with the process; a cluster that needs others is a real etcd cluster.
	"simple token is not cryptographically signed": true,
}

// Enabled implements zapcore.Core.
func (b bridge) Enabled(l zapcore.Level) bool {
	return l >= zapcore.InfoLevel && b.handler.Enabled(context.Background(), level(l))
}

// With implements zapcore.Core.
func (b bridge) With(fields []zapcore.Field) zapcore.Core {
	return bridge{b.handler.WithAttrs(attrs(fields)), b.closing}
}

// Check implements zapcore.Core.
func (b bridge) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(e.Level) {
		return c.AddCore(e, b)
	}
	return c
}

// Write implements zapcore.Core.
func (b bridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	l := level(e.Level)
	if quiet[e.Message] || b.closing.Err() != nil {
		l = slog.LevelDebug
	}
	if !b.handler.Enabled(context.Background(), l) {
		return nil
	}
	r := slog.NewRecord(e.Time, l, "etcd: "+e.Message, 0)
	r.AddAttrs(attrs(fields)...)
	return b.handler.Handle(context.Background(), r)
}

// Sync implements zapcore.Core.
func (bridge) Sync() error { return nil }

func attrs(fields []zapcore.Field) []slog.Attr {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(m)
	}
	out := make([]slog.Attr, 0, len(m.Fields))
	for _, f := range fields {
		if v, ok := m.Fields[f.Key]; ok {
			out = append(out, slog.Any(f.Key, v))
		}
	}
	return out
}
