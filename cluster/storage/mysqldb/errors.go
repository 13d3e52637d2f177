package mysqldb

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/go-sql-driver/mysql"
)

// Codes of the server's errors.
const (
	codeTooMany     = 1040
	codeAccessDB    = 1044
	codeAccess      = 1045
	codeNoDatabase  = 1049
	codeShutdown    = 1053
	codeInterrupted = 1317
	codeTooLong     = 1406
	codeTableNew    = 1412 // a snapshot is older than the definition of a table
	codeKilled      = 1927
)

// lostCodes are those after which a connection is of no use, or its statement had no effect
// for a reason outside of it.
var lostCodes = []uint16{codeTooMany, codeShutdown, 1077, 1079, 1080, 1152, 1158, 1159, 1160, 1161, 1184, codeInterrupted, codeTableNew, codeKilled, 3169, 4031}

// lost reports that a connection is gone, or cannot be had for a moment.
func lost(err error) bool {
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return true
	}
	return slices.Contains(lostCodes, code(err))
}

// code returns the server's number of an error, 0 if err is of another kind.
func code(err error) uint16 {
	if e, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return e.Number
	}
	return 0
}

// advise adds to the error of a connection what is to be done.
func (d *dialect) advise(err error) error {
	switch c := code(err); {
	case err == nil:
		return nil
	case c == codeNoDatabase:
		return fmt.Errorf("%w: create it with CREATE DATABASE %s", err, quoteName(d.name.database))
	case c == codeAccess, c == codeAccessDB:
		return fmt.Errorf("%w: create the user, or give it the rights, with GRANT ALL ON %s.* TO …", err, quoteName(d.name.database))
	case c == codeTooMany:
		return fmt.Errorf("%w: raise max_connections of the server", err)
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("%w: is the server running? --wait waits for it", err)
	}
	return err
}
