package diag

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func TestNewLogger(t *testing.T) {
	tests := []struct {
		format, level string
		want          []string
		not           []string
	}{
		{"text", "info", []string{"level=INFO msg=i tenant=a", "level=ERROR"}, []string{"level=DEBUG"}},
		{"text", "debug", []string{"level=DEBUG", "level=INFO"}, nil},
		{"JSON", "WARN", []string{`"level":"WARN"`, `"tenant":"a"`}, []string{`"level":"INFO"`}},
		{"json", "error", []string{`"level":"ERROR"`}, []string{`"level":"WARN"`}},
	}
	for _, tt := range tests {
		t.Run(tt.format+" "+tt.level, func(t *testing.T) {
			var out bytes.Buffer
			log, err := NewLogger(&out, tt.format, tt.level)
			if err != nil {
				t.Fatal(err)
			}
			log.Debug("d", "tenant", "a")
			log.Info("i", "tenant", "a")
			log.Warn("w", "tenant", "a")
			log.Error("e", "tenant", "a")
			for _, w := range tt.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("log lacks %s:\n%s", w, out.String())
				}
			}
			for _, n := range tt.not {
				if strings.Contains(out.String(), n) {
					t.Errorf("log has %s:\n%s", n, out.String())
				}
			}
		})
	}
}

func TestNewLoggerErrors(t *testing.T) {
	tests := []struct{ format, level, want string }{
		{"xml", "info", `log format "xml"`},
		{"", "info", `log format ""`},
		{"text", "loud", `log level "loud"`},
	}
	for _, tt := range tests {
		if _, err := NewLogger(&bytes.Buffer{}, tt.format, tt.level); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("NewLogger(%q, %q): error %v, want one that says %s", tt.format, tt.level, err, tt.want)
		}
	}
}

// TestTimesAreUTC on a machine that is elsewhere.
func TestTimesAreUTC(t *testing.T) {
	there := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("elsewhere", 5*3600))
	var out bytes.Buffer
	log, err := NewLogger(&out, JSON, "info")
	if err != nil {
		t.Fatal(err)
	}
	record := slog.NewRecord(there, slog.LevelInfo, "now", 0)
	record.AddAttrs(slog.Group("inner", slog.Time("time", there)))
	if err := log.Handler().Handle(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	var line struct {
		Time  string `json:"time"`
		Inner struct {
			Time string `json:"time"`
		} `json:"inner"`
	}
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	if line.Time != "2026-01-01T22:04:05Z" {
		t.Errorf("time %s is not in UTC", line.Time)
	}
	if !strings.HasSuffix(line.Inner.Time, "+05:00") {
		t.Errorf("a time that the program logs was changed: %s", line.Inner.Time)
	}
}

func TestFlags(t *testing.T) {
	f := Flags{MetricsAddress: ":9101"}
	fs := pflag.NewFlagSet("program", pflag.ContinueOnError)
	f.Register(fs)
	if err := fs.Parse([]string{"--log-level=debug", "--metrics-address="}); err != nil {
		t.Fatal(err)
	}
	want := Flags{LogFormat: "text", LogLevel: "debug"}
	if f != want {
		t.Errorf("flags are %+v, want %+v", f, want)
	}
	if _, err := f.Logger(&bytes.Buffer{}); err != nil {
		t.Error(err)
	}
}
