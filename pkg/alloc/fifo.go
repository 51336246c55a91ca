package alloc

// fifo is a queue of distinct elements, any of which can be taken out. The zero
// value is empty.
type fifo[T comparable] struct {
	queue []entry[T]
	turn  map[T]uint64 // the turn of each element; other entries are stale
	next  uint64
}

type entry[T comparable] struct {
	value T
	turn  uint64
}

func (f *fifo[T]) push(v T) {
	if f.turn == nil {
		f.turn = map[T]uint64{}
	}
	f.next++
	f.turn[v] = f.next
	f.queue = append(f.queue, entry[T]{v, f.next})
}

func (f *fifo[T]) pop() (v T, ok bool) {
	for len(f.queue) > 0 {
		e := f.queue[0]
		f.queue = f.queue[1:]
		if f.turn[e.value] == e.turn {
			delete(f.turn, e.value)
			return e.value, true
		}
	}
	return v, false
}

func (f *fifo[T]) remove(v T) {
	delete(f.turn, v)
	// Stale entries must not pile up where elements come and go out of turn.
	if len(f.queue) > 2*len(f.turn)+16 {
		kept := make([]entry[T], 0, len(f.turn))
		for _, e := range f.queue {
			if f.turn[e.value] == e.turn {
				kept = append(kept, e)
			}
		}
		f.queue = kept
	}
}

func (f *fifo[T]) has(v T) bool { _, ok := f.turn[v]; return ok }

func (f *fifo[T]) len() int { return len(f.turn) }
