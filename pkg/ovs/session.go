package ovs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/ovn-org/libovsdb/cache"
	"github.com/ovn-org/libovsdb/client"
	"github.com/ovn-org/libovsdb/model"
	"github.com/ovn-org/libovsdb/ovsdb"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
)

// session is one connection to ovsdb-server with its copy of the database. It
// is never reused: libovsdb's own reconnection polls every 50 ms, keeps
// reporting "connected" while it is not, and cannot be stopped while it tries.
type session struct {
	lib   client.Client
	cache *cache.TableCache
	// before is that the database has interfaces of the kind [rowInterfaceBefore].
	before bool
	// lost is closed when the connection ends.
	lost chan struct{}
	// unsaved is that ovsdb-server could not write a transaction down, and there was no look
	// since whether it can.
	unsaved atomic.Bool
	stop    context.CancelFunc
	wg      sync.WaitGroup
}

// probeInterval is how often an idle connection is checked: a server that hangs
// does not close it. It is Open vSwitch's own (inactivity_probe, 5 s).
const probeInterval = 5 * time.Second

// dial connects and reads the whole of the monitored tables. changed is called
// for every row that changes from then on.
func dial(ctx context.Context, socket string, log *slog.Logger, changed func(waiter string)) (*session, error) {
	lib, iface, err := open(ctx, socket)
	if err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.Background())
	_, before := iface.(*rowInterfaceBefore)
	s := &session{lib: lib, before: before, lost: make(chan struct{}), stop: stop}
	s.wg.Add(1)
	go s.watch(life, log)
	// A disconnection in between takes the cache away.
	if s.cache = lib.Cache(); s.cache == nil {
		s.close()
		return nil, ErrDisconnected
	}
	notify := func(_ string, m model.Model) {
		switch row := m.(type) {
		case *rowInterface:
			changed(row.Name)
		case *rowInterfaceBefore:
			changed(row.Name)
		case *rowOVS:
			changed(syncWaiter)
		default:
			changed("")
		}
	}
	s.cache.AddEventHandler(&cache.EventHandlerFuncs{
		AddFunc:    notify,
		UpdateFunc: func(table string, _, m model.Model) { notify(table, m) },
		DeleteFunc: notify,
	})
	if _, err := lib.Monitor(ctx, monitor(lib, iface)); err != nil {
		s.close()
		return nil, fmt.Errorf("reading the database: %w", err)
	}
	return s, nil
}

// open connects, with rows of interfaces that have the columns of the database's schema, and returns one.
func open(ctx context.Context, socket string) (client.Client, model.Model, error) {
	iface := &rowInterface{}
	lib, err := dialWith(ctx, socket, iface)
	if err == nil {
		return lib, iface, nil
	}
	before := &rowInterfaceBefore{}
	lib, beforeErr := dialWith(ctx, socket, before)
	if beforeErr != nil {
		return nil, nil, err
	}
	if lib.Schema().Table(tableInterface).Column(packetRate) != nil {
		lib.Close() // the column was not why it failed: the next attempt has it
		return nil, nil, err
	}
	return lib, before, nil
}

// dialWith connects, with rows of interfaces like iface.
func dialWith(ctx context.Context, socket string, iface model.Model) (client.Client, error) {
	dbModel, err := clientModel(iface)
	if err != nil {
		return nil, fmt.Errorf("model of the database: %w", err)
	}
	// libovsdb logs every row at its debug levels and every failed attempt above.
	quiet := logr.Discard()
	lib, err := client.NewOVSDBClient(dbModel, client.WithEndpoint("unix:"+socket), client.WithLogger(&quiet))
	if err != nil {
		return nil, err
	}
	return lib, lib.Connect(ctx)
}

// monitor asks for the columns of the models. They are named one by one: with
// none named libovsdb asks for every column of the table, statistics too.
func monitor(lib client.Client, iface model.Model) *client.Monitor {
	m := lib.NewMonitor()
	for table, row := range rows(iface) {
		m.Tables = append(m.Tables, client.TableMonitor{Table: table, Fields: columns(row)})
	}
	return m
}

// watch closes s.lost when the connection ends, and ends it when the server
// does not answer any more.
func (s *session) watch(ctx context.Context, log *slog.Logger) {
	defer s.wg.Done()
	defer close(s.lost)
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.lib.DisconnectNotify():
			return
		case <-tick.C:
			// libovsdb drops its notification where nobody is receiving right then.
			if s.lib.CurrentEndpoint() == "" {
				return
			}
			probe, cancel := context.WithTimeout(ctx, probeInterval)
			err := s.lib.Echo(probe)
			cancel()
			if err != nil && ctx.Err() == nil {
				log.Warn("ovsdb-server does not answer", "error", err)
				return
			}
		}
	}
}

// close ends the connection and waits for the watcher.
func (s *session) close() {
	s.lib.Close()
	s.stop()
	s.wg.Wait()
}

// transact commits ops as one transaction and returns the results of each.
func (s *session) transact(ctx context.Context, what string, ops []ovsdb.Operation) ([]ovsdb.OperationResult, error) {
	results, err := s.lib.Transact(ctx, ops...)
	faultpoint.Here("database", "")
	if err != nil {
		if s.isLoss(err) {
			return nil, fmt.Errorf("%s: %w: %w", what, ErrDisconnected, err)
		}
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	opErrs, err := ovsdb.CheckOperationResults(results, ops)
	var full *ovsdb.IOError
	if errors.As(err, &full) {
		s.unsaved.Store(true)
		return nil, fmt.Errorf("%s: %w", what, &StorageError{Text: full.Error()})
	}
	if err != nil {
		for _, e := range opErrs {
			err = errors.Join(err, e)
		}
		return nil, fmt.Errorf("%s: ovsdb-server refuses: %w", what, err)
	}
	return results, nil
}

// isLoss reports whether err comes from the end of the connection.
func (s *session) isLoss(err error) bool {
	select {
	case <-s.lost:
		return true
	default:
	}
	for _, loss := range []error{client.ErrNotConnected, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, unix.EPIPE, unix.ECONNRESET} {
		if errors.Is(err, loss) {
			return true
		}
	}
	return false
}

func (s *session) table(name string) *cache.RowCache { return s.cache.Table(name) }

// ovs is the only row of the Open_vSwitch table; nil before ovs-vsctl init.
func (s *session) ovs() *rowOVS {
	for _, m := range s.table(tableOVS).Rows() {
		return m.(*rowOVS)
	}
	return nil
}

func (s *session) bridgeByName(name string) (*rowBridge, error) {
	return byIndex(s, tableBridge, &rowBridge{Name: name})
}

func (s *session) portByName(name string) (*rowPort, error) {
	return byIndex(s, tablePort, &rowPort{Name: name})
}

func (s *session) interfaceByName(name string) (*rowInterface, error) {
	if s.before {
		row, err := byIndex(s, tableInterface, &rowInterfaceBefore{Name: name})
		return (*rowInterface)(row), err
	}
	return byIndex(s, tableInterface, &rowInterface{Name: name})
}

func (s *session) interfaceByUUID(uuid string) *rowInterface {
	if s.before {
		return (*rowInterface)(byUUID[rowInterfaceBefore](s, tableInterface, uuid))
	}
	return byUUID[rowInterface](s, tableInterface, uuid)
}

// byIndex finds a row by its schema index (name); nil where there is none.
func byIndex[T any](s *session, table string, key *T) (*T, error) {
	_, m, err := s.table(table).RowByModel(key)
	if err != nil {
		return nil, fmt.Errorf("looking up a row of %s: %w", table, err)
	}
	if m == nil {
		return nil, nil
	}
	return m.(*T), nil
}

// byUUID finds a row; nil where there is none.
func byUUID[T any](s *session, table, uuid string) *T {
	m := s.table(table).Row(uuid)
	if m == nil {
		return nil
	}
	return m.(*T)
}
