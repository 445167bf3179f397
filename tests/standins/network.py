"""Stand-ins for the network between a node and a service: TLS servers, a proxy, and listeners that do not answer.

    network.py KEY NAME=CERTIFICATE ...

It starts a TLS server for each certificate, prints a JSON object of ports and serves until it is killed. The proxy
connects only to the server `tls`, under the name `localhost`. For `login.invalid` it demands a password, and everything
else it refuses as Squid does.
"""

import http.server
import json
import socket
import ssl
import sys
import threading


class Service(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        # Some services repeat the credential in their answer.
        content = json.dumps({"errors": [{"message": f"no to {self.headers.get('Authorization')}"}]}).encode()
        self.send_response(404)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


class Proxy(Service):
    tls_port = 0

    def do_CONNECT(self):
        host, _, port = self.path.rpartition(":")
        if host == "login.invalid" and "Proxy-Authorization" not in self.headers:
            self.send_error(407, "Proxy Authentication Required")
            return
        if (host, port) != ("localhost", str(self.tls_port)):
            self.send_error(403, "Forbidden")
            return
        with socket.create_connection(("127.0.0.1", self.tls_port)) as service:
            self.send_response_only(200, "Connection established")
            self.end_headers()
            there = threading.Thread(target=_pump, args=(self.connection, service), daemon=True)
            there.start()
            _pump(service, self.connection)
        self.close_connection = True

    def do_GET(self):
        content = b"<html>The site's policy forbids this page</html>"
        self.send_response(403, "Forbidden")
        self.send_header("X-Squid-Error", "ERR_ACCESS_DENIED 0")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET


def _pump(source, target):
    try:
        while chunk := source.recv(65536):
            target.sendall(chunk)
    except OSError:
        pass


def _serve(handler, context=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda request, address: None
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def _listen(answer):
    """Listen and accept; send `answer`, if any, and nothing more."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        kept = []
        while True:
            connection, _ = listener.accept()
            kept.append(connection)
            if answer:
                connection.recv(1)
                connection.sendall(answer)

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


if __name__ == "__main__":
    ports = {"proxy": _serve(Proxy), "silent": _listen(b""), "garbage": _listen(b"220 mail\r\n")}
    for argument in sys.argv[2:]:
        name, _, certificate = argument.partition("=")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, sys.argv[1])
        ports[name] = _serve(Service, context)
    Proxy.tls_port = ports["tls"]
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    threading.Event().wait()
