package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// statuses are the codes of what calls of this flow were refused with, by text: the SDK makes errors without a code of many.
type statuses struct {
	lock   sync.Mutex
	byText map[string]codes.Code
}

var heard = statuses{byText: map[string]codes.Code{}}

func (s *statuses) forget() {
	s.lock.Lock()
	defer s.lock.Unlock()
	clear(s.byText)
}

func (s *statuses) note(err error) error {
	if found, is := status.FromError(err); is && err != nil {
		s.set(found.Message(), found.Code())
	}
	return err
}

func (s *statuses) set(text string, code codes.Code) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.byText[text] = code
}

func (s *statuses) code(text string) (codes.Code, bool) {
	s.lock.Lock()
	defer s.lock.Unlock()
	code, known := s.byText[text]
	return code, known
}

// listening are the options of a connection whose statuses are heard before the SDK makes something else of them.
var listening = []grpc.DialOption{
	grpc.WithTransportCredentials(insecure.NewCredentials()),
	grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn,
		call grpc.UnaryInvoker, options ...grpc.CallOption) error {
		return heard.note(call(ctx, method, request, reply, conn, options...))
	}),
	grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string,
		open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
		inner, err := open(ctx, desc, conn, method, options...)
		if heard.note(err) != nil {
			return nil, err
		}
		return heardStream{inner}, nil
	}),
}

type heardStream struct{ grpc.ClientStream }

// SendMsg says of a stream that has ended only that it has: why is for receiving to say, which the SDK does not do.
func (s heardStream) SendMsg(message any) error {
	err := s.ClientStream.SendMsg(message)
	if errors.Is(err, io.EOF) {
		if why := s.ClientStream.RecvMsg(new(emptypb.Empty)); why != nil {
			heard.set(err.Error(), status.Code(why))
		}
	}
	return heard.note(err)
}

func (s heardStream) RecvMsg(message any) error { return heard.note(s.ClientStream.RecvMsg(message)) }

// explained gives the status of a failed call.
func explained(err error) (codes.Code, string) {
	if found, is := status.FromError(err); is {
		return found.Code(), found.Message()
	}
	text := err.Error()
	if code, known := heard.code(text); known {
		return code, text
	}
	// No answer at all: the SDK waits for its connection when it opens a session, and gives the reason without a code.
	if strings.HasPrefix(text, "connection error: ") {
		return codes.Unavailable, text
	}
	return codes.Unknown, text
}
