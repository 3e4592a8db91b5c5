// A Node server that says what it understood: a line of JSON for each request, before it answers.
'use strict';
const http = require('http');

const say = (seen) => process.stdout.write(JSON.stringify(seen) + '\n');

function answer(request, response) {
  const pieces = [];
  request.on('data', (piece) => pieces.push(piece));
  request.on('end', () => {
    const { method, url, headers, rawTrailers } = request;
    say({ method, target: url, headers, trailers: rawTrailers, body: Buffer.concat(pieces).toString('latin1') });
    response.end(`${method} ${url}\n`);
  });
}

const server = http.createServer({ maxHeaderSize: 1 << 18 }, answer);
server.on('checkExpectation', answer);
// The relay's head may have more fields than Node counts by default, and its idle connections are the agent's to close.
server.maxHeadersCount = 0;
server.keepAliveTimeout = 60000;
server.on('clientError', (error, socket) => {
  if (error.code !== 'ECONNRESET') say({ refused: error.code });
  socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
});
server.listen(0, '127.0.0.1', () => console.log(`listening on ${server.address().port}`));
