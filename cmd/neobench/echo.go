package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/neozodb/neo/cmd/internal/cli"
	"github.com/spf13/cobra"
)

// Sizes in bytes of what goes forth and back, like those of a load.
const (
	echoRequest = 40
	echoAnswer  = 2000
)

// newEcho is the other process of echoFloor.
func newEcho(env *cli.Env) *cobra.Command {
	return &cobra.Command{
		Use:    "echo",
		Short:  "Answer requests of a few bytes with 2 kB, until stdin ends",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			go func() {
				for {
					nc, err := l.Accept()
					if err != nil {
						return // closed
					}
					go answerAll(nc)
				}
			}()
			fmt.Fprintln(env.Stdout, l.Addr())
			_, err = io.Copy(io.Discard, os.Stdin)
			l.Close()
			return err
		},
	}
}

func answerAll(nc net.Conn) {
	defer nc.Close()
	request, answer := make([]byte, echoRequest), make([]byte, echoAnswer)
	for {
		if _, err := io.ReadFull(nc, request); err != nil {
			return // the client has enough
		}
		if _, err := nc.Write(answer); err != nil {
			return
		}
	}
}

// echoFloor measures connections that ask another process for 2 kB, which it has
// at hand: no load can be faster here.
func (c *comparison) echoFloor(ctx context.Context, connections, n int) (*figures, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "echo")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		stdin.Close() // which ends it
		cmd.Wait()
	}()
	address, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("neobench echo: %w", err)
	}
	f := &figures{name: fmt.Sprintf("empty round trip, %d clients", connections)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	errs := make(chan error, connections)
	start := time.Now()
	for range connections {
		wg.Go(func() {
			latencies, err := echoes(strings.TrimSpace(address), n)
			mu.Lock()
			f.latencies = append(f.latencies, latencies...)
			f.ops += len(latencies)
			mu.Unlock()
			errs <- err
		})
	}
	wg.Wait()
	f.elapsed = time.Since(start)
	for range connections {
		if err := <-errs; err != nil {
			return nil, err
		}
	}
	return f, nil
}

func echoes(address string, n int) (latencies []time.Duration, err error) {
	nc, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	request, answer := make([]byte, echoRequest), make([]byte, echoAnswer)
	for range n {
		start := time.Now()
		if _, err := nc.Write(request); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(nc, answer); err != nil {
			return nil, err
		}
		latencies = append(latencies, time.Since(start))
	}
	return latencies, nil
}
