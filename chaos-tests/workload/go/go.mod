// Says where the module begins; the versions are those of conformance/go/go.mod, with which it is built (-modfile).
module alhambra/conformance

go 1.25.0
