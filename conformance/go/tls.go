package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/codenotary/immudb/pkg/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// nodeProgram is the variable with the program of the node that the flow of TLS starts, because those of a demo speak plain text:
// most SDKs have no TLS.
const nodeProgram = "ALHAMBRA_SERVER"

// serving is the line in which a node says where it serves.
var serving = regexp.MustCompile(` serving grpc="([^"]+)"`)

// authority vouches for certificates, all in one folder.
type authority struct {
	folder, name string
	cert         *x509.Certificate
	key          *ecdsa.PrivateKey
}

func newAuthority(folder, name string) *authority {
	a := &authority{folder: folder, name: name}
	a.cert, a.key = a.issue(name, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// pair gives the files of a certificate for this address, and of its key.
func (a *authority) pair(name string) (certificate, key string) {
	a.issue(name, &x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	return a.file(name), a.file(name + "-key")
}

func (a *authority) file(name string) string { return filepath.Join(a.folder, name+".pem") }

func (a *authority) issue(name string, wanted *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	key := ok(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	wanted.SerialNumber = big.NewInt(time.Now().UnixNano())
	wanted.Subject = pkix.Name{CommonName: name}
	wanted.NotBefore, wanted.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := wanted, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der := ok(x509.CreateCertificate(rand.Reader, wanted, parent, &key.PublicKey, signer))
	write := func(name, kind string, der []byte) {
		must(os.WriteFile(a.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	write(name, "CERTIFICATE", der)
	write(name+"-key", "PRIVATE KEY", ok(x509.MarshalPKCS8PrivateKey(key)))
	return ok(x509.ParseCertificate(der)), key
}

// encrypted is about a node with TLS that knows its clients by their certificates: those with a good one and those without
// one are let in, those with a stranger's are not, and clients do not believe a stranger's node.
func encrypted(f *flow) {
	folder := ok(os.MkdirTemp("", "conformance-tls-"))
	defer func() { _ = os.RemoveAll(folder) }()
	ours, strangers := newAuthority(folder, "ours"), newAuthority(folder, "strangers")
	certificate, key := ours.pair("node")
	endpoint, stop := f.serve(filepath.Join(folder, "data"), "--certificate", certificate, "--pkey", key,
		"--mtls", "--clientcas", ours.file("ours"))
	defer stop()
	host, text := ok2(net.SplitHostPort(endpoint))
	port := ok(strconv.Atoi(text))
	open := func(options *client.Options) (client.ImmuClient, error) {
		// A handshake that fails is tried again as long as there is time.
		ctx, cancel := context.WithTimeout(f.ctx, 5*time.Second)
		defer cancel()
		db := client.NewClient().WithOptions(options.WithAddress(host).WithPort(port).WithDir(folder)).WithLogger(quiet{})
		return db, db.OpenSession(ctx, []byte(f.Username), []byte(f.Password), "defaultdb")
	}
	// As users of the SDK say it.
	known := func() *client.Options {
		certificate, key := ours.pair("client")
		options := client.DefaultMTLsOptions().WithServername("127.0.0.1").WithClientCAs(ours.file("ours"))
		return client.DefaultOptions().WithMTLs(true).WithMTLsOptions(options.WithCertificate(certificate).WithPkey(key))
	}
	trusting := func(a *authority, shown func(*tls.CertificateRequestInfo) (*tls.Certificate, error)) *client.Options {
		pool := x509.NewCertPool()
		pool.AddCert(a.cert)
		config := credentials.NewTLS(&tls.Config{RootCAs: pool, GetClientCertificate: shown})
		return client.DefaultOptions().WithDialOptions([]grpc.DialOption{grpc.WithTransportCredentials(config)})
	}
	// Go shows no certificate by itself that the node has said it would not take.
	intruder := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(strangers.pair("intruder"))
		return &pair, err
	}
	good := map[string]*client.Options{"its own": known(), "none": trusting(ours, nil)}
	for name, options := range good {
		db, err := open(options)
		for began := time.Now(); err != nil && strings.Contains(err.Error(), "starting") && time.Since(began) < 20*time.Second; {
			time.Sleep(20 * time.Millisecond)
			db, err = open(options)
		}
		must(err)
		ok(db.VerifiedSet(f.ctx, []byte(name), []byte("value")))
		same(value(db.VerifiedGet(f.ctx, []byte(name))), "value", "VerifiedGet with a certificate: "+name)
		must(db.CloseSession(f.ctx))
	}
	for name, options := range map[string]*client.Options{
		"a stranger's certificate": trusting(ours, intruder),
		"trust in strangers":       trusting(strangers, nil),
		"plain text":               client.DefaultOptions(),
	} {
		if _, err := open(options); err == nil {
			panic(wrong{"a session was opened with " + name})
		}
	}
	// Because of whom they were of, and not because nobody was there.
	must(ok(open(good["its own"])).CloseSession(f.ctx))
}

// serve starts a node alone, and gives where it serves and what stops it.
func (f *flow) serve(folder string, more ...string) (string, func()) {
	arguments := append([]string{"serve", "--dir", folder, "--address", "127.0.0.1", "--port", "0", "--peer-port", "0",
		"--metrics-server=false", "--web-server=false", "--admin-password", f.Password}, more...)
	node := exec.Command(os.Getenv(nodeProgram), arguments...)
	// Also when this program is killed.
	node.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, says := ok2(os.Pipe())
	node.Stdout, node.Stderr = says, says
	must(node.Start())
	must(says.Close())
	stop := func() {
		_ = node.Process.Signal(syscall.SIGTERM)
		_ = node.Wait()
	}
	log := ""
	for lines := bufio.NewScanner(said); lines.Scan(); log += lines.Text() + "\n" {
		if found := serving.FindStringSubmatch(lines.Text()); found != nil {
			// What it says later is not waited for by anybody.
			go func() { _, _ = io.Copy(io.Discard, said) }()
			return found[1], stop
		}
	}
	stop()
	panic(wrong{"the node does not serve: " + log})
}
