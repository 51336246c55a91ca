package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

// What one node may ask of etcd: many times what agents do, at their start too, and little to an
// etcd. What is in force is the rate over longer times, in units a second, and what may be used up
// at once.
const (
	requestRate, requestBurst = 500, 20_000         // requests and messages of streams
	writeRate, writeBurst     = 1 << 20, 64 << 20   // bytes that are sent
	readRate, readBurst       = 16 << 20, 512 << 20 // bytes of answers and of watches
	leaseRate, leaseBurst     = 2, 1000
	// maxLeaseTTL, seconds, and the two above bound the leases that stand.
	maxLeaseTTL = 3600
	// maxRequest is of one request, bytes. A node with 1,000 pods has records of some 400 kB.
	maxRequest = 1 << 20
	// Those that are open at a time.
	maxStreams, maxWatches = 100, 20_000
	// maxRanges bounds what one transaction reads, maxReading the requests whose answers are being
	// made, maxWaiting those that wait for their turn: answers are charged when they are made, and
	// are many times as large as requests.
	maxRanges, maxReading, maxWaiting = 8, 16, 1000
	// stalled is how long a client may leave what it asked to be told.
	stalled = 30 * time.Second

	tellEvery = time.Minute
)

// budgets bound what each node asks of etcd, which all have in common: who has stolen one, or an agent gone wild, must
// not fill it, nor keep it busy. Others than nodes are trusted with more than that.
type budgets struct {
	log     *slog.Logger
	metrics *Metrics

	mu    sync.Mutex // guards what follows
	users map[string]*budget
}

// budget is what a user has left. It is safe for concurrent use.
type budget struct {
	requests, written, read, leases *rate.Limiter
	// reading has a place for each request that is being answered.
	reading chan struct{}

	mu                        sync.Mutex // guards what follows
	streams, watches, waiting int
	told                      time.Time
}

// of is the budget of a user; nil where there is none.
func (b *budgets) of(user string) *budget {
	if !pki.IsNodeUser(user) {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	left := b.users[user]
	if left == nil {
		left = &budget{
			requests: rate.NewLimiter(requestRate, requestBurst), written: rate.NewLimiter(writeRate, writeBurst),
			read: rate.NewLimiter(readRate, readBurst), leases: rate.NewLimiter(leaseRate, leaseBurst),
			reading: make(chan struct{}, maxReading),
		}
		if b.users == nil {
			b.users = map[string]*budget{}
		}
		b.users[user] = left
	}
	return left
}

// forget ends what is kept for a user that is no more.
func (b *budgets) forget(user string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.users, user)
}

// sized is a message that tells its length on the wire, as all of etcd's do.
type sized interface{ Size() int }

func size(message any) int {
	if m, ok := message.(sized); ok {
		return m.Size()
	}
	return 0
}

// tell counts what a user with a budget is refused, and logs it now and then.
func (b *budgets) tell(user string, left *budget, err error) error {
	if err == nil {
		return nil
	}
	b.metrics.refused.Inc()
	left.mu.Lock()
	news := time.Since(left.told) > tellEvery
	if news {
		left.told = time.Now()
	}
	left.mu.Unlock()
	if news {
		b.log.Warn("a node asks more of etcd than agents do, and is refused", "user", user, "error", err)
	}
	return err
}

// spent takes what an answer cost. It was given: where there is not as much left, requests that come next
// are refused.
func (b *budget) spent(answer any) {
	if b != nil {
		b.read.ReserveN(time.Now(), min(size(answer), readBurst))
	}
}

// spend takes what a request costs, and refuses it where that is more than there is left. Without a
// budget nothing costs anything.
func (b *budget) spend(request any) error {
	if b == nil {
		return nil
	}
	bytes := size(request)
	if bytes > maxRequest {
		return busy("a request of %d bytes, of at most %d", bytes, maxRequest)
	}
	if r, ok := request.(*pb.LeaseGrantRequest); ok {
		switch {
		case r.TTL > maxLeaseTTL:
			return busy("a lease of %d s, of at most %d", r.TTL, maxLeaseTTL)
		case !b.leases.Allow():
			return busy("more than %d leases a second", leaseRate)
		}
	}
	if r, ok := request.(*pb.TxnRequest); ok {
		if err := plain(r); err != nil {
			return err
		}
	}
	switch {
	case !b.requests.Allow():
		return busy("more than %d requests a second", requestRate)
	case b.read.Tokens() < 0:
		return busy("more than %d bytes a second are read", readRate)
	case !b.written.AllowN(time.Now(), bytes):
		return busy("more than %d bytes a second are sent", writeRate)
	}
	return nil
}

// plain refuses transactions whose answers may be many times as large as all that is written:
// with others in them, or with many ranges.
func plain(txn *pb.TxnRequest) error {
	ranges := 0
	for _, ops := range [][]*pb.RequestOp{txn.Success, txn.Failure} {
		for _, op := range ops {
			if op.GetRequestTxn() != nil {
				return busy("a transaction in a transaction")
			}
			if op.GetRequestRange() != nil {
				ranges++
			}
		}
	}
	if ranges > maxRanges {
		return busy("a transaction that reads %d ranges, of at most %d", ranges, maxRanges)
	}
	return nil
}

// begin waits until few enough requests of the user are being answered; done ends this one.
func (b *budget) begin(ctx context.Context) (done func(), err error) {
	if b == nil {
		return func() {}, nil
	}
	done = func() { <-b.reading }
	select {
	case b.reading <- struct{}{}:
		return done, nil
	default:
	}
	b.mu.Lock()
	b.waiting++
	crowded := b.waiting > maxWaiting
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.waiting--
	}()
	if crowded {
		return nil, busy("more than %d requests at a time", maxReading+maxWaiting)
	}
	select {
	case b.reading <- struct{}{}:
		return done, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// busy has the code and the beginning of etcd's own error for that.
func busy(format string, args ...any) error {
	return status.Error(codes.ResourceExhausted, "etcdserver: too many requests: "+fmt.Sprintf(format, args...))
}

// enter counts a stream that is open until leave.
func (b *budget) enter() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.streams++
	if b.streams > maxStreams {
		return busy("more than %d streams at a time", maxStreams)
	}
	return nil
}

func (b *budget) leave(s *stream) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.streams--
	b.watches -= s.watches
	s.left = true
}

// watch counts the watches of a stream by what it asks for.
func (b *budget) watch(s *stream, message any) error {
	r, ok := message.(*pb.WatchRequest)
	if !ok || b == nil || r.GetCreateRequest() == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.left {
		return nil
	}
	s.watches++
	if b.watches++; b.watches > maxWatches {
		return busy("more than %d watches at a time", maxWatches)
	}
	return nil
}

// answered takes off the watches that etcd says have ended: a client may ask to end any. What
// the stream is sent is charged.
func (b *budget) answered(s *stream, message any) {
	if b == nil {
		return
	}
	b.spent(message)
	r, ok := message.(*pb.WatchResponse)
	if !ok || !r.Canceled {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.left || s.watches == 0 {
		return
	}
	s.watches--
	b.watches--
}
