'use strict';
// Node at either end of a tunnel: words in front of an answer, trailers behind it, and streams.
//
//     node streaming.js serve            a server; says `listening PORT`
//     node streaming.js ask PORT CASE    a visitor of the tunnel `node`; says what it saw, in JSON

const http = require('http');

const [mode, port, which] = process.argv.slice(2);

// --- the server ---

const readers = new Set();

function body(message) {
  return new Promise((resolve, reject) => {
    const pieces = [];
    message.on('data', (piece) => pieces.push(piece));
    message.on('end', () => resolve(Buffer.concat(pieces)));
    message.on('error', reject);
  });
}

const apps = {
  hints(_, response) {
    response.writeEarlyHints({ link: ['</a.css>; rel=preload; as=style', '</b.js>; rel=preload; as=script'] });
    response.writeProcessing();
    response.end('hinted');
  },
  trailers(request, response) {
    // As servers of gRPC's kind do it: only for those who have said that they take them.
    const taken = request.headers.te === 'trailers';
    if (taken) response.setHeader('Trailer', 'X-Status');
    response.write('a body');
    if (taken) response.addTrailers({ 'X-Status': '0' });
    response.end();
  },
  async sum(request, response) {
    const content = await body(request);
    response.end(JSON.stringify({ length: content.length, trailers: request.trailers }));
  },
  early(_, response) {
    response.end('no need');
  },
  async mirror(request, response) {
    response.end(await body(request));
  },
  events(_, response) {
    response.writeHead(200, { 'Content-Type': 'text/event-stream' });
    response.write(': here\n\n');
    readers.add(response);
    response.on('close', () => readers.delete(response));
  },
  tell(request, response) {
    for (const reader of readers) reader.write(`data: ${request.headers['x-event']}\n\n`);
    response.end(String(readers.size));
  },
};

function serve() {
  const app = (request, response) => apps[request.url.slice(1)](request, response);
  const server = http.createServer(app);
  server.on('checkContinue', (request, response) => {
    if (request.url === '/mirror') {
      response.writeContinue();
      app(request, response);
    } else {
      response.writeHead(413);
      response.end('not wanted');
    }
  });
  server.listen(0, '127.0.0.1', () => console.log(`listening ${server.address().port}`));
}

// --- the visitor ---

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

/// Asks; `begin` sends what there is to send. Gives what came, as soon as the answer is whole.
function ask(method, path, headers, begin, anew = false) {
  return new Promise((resolve, reject) => {
    const seen = { interim: [] };
    const request = http.request({
      port, method, path, host: '127.0.0.1', agent: anew ? new http.Agent({ keepAlive: true }) : agent,
      headers: { host: 'node.localhost', ...headers },
    });
    request.on('information', (head) => seen.interim.push([head.statusCode, head.headers.link]));
    request.on('response', async (response) => {
      try {
        const text = (await body(response)).toString();
        const { statusCode: status, trailers, headers: { connection } } = response;
        resolve({ ...seen, status, text, trailers, connection });
      } catch (error) {
        reject(error);
      }
    });
    request.on('error', reject);
    begin(request);
  });
}

/// Sends the body when it is asked for, and not before.
function waiting(content) {
  return (request) => {
    request.on('continue', () => request.end(content));
    request.flushHeaders();
  };
}

const plain = (request) => request.end();

const cases = {
  hints: () => ask('GET', '/hints', {}, plain),
  trailers: () => ask('GET', '/trailers', { TE: 'trailers', Connection: 'TE' }, plain),
  unasked: () => ask('GET', '/trailers', {}, plain),
  sum: () => ask('POST', '/sum', { Trailer: 'X-Sum', 'Transfer-Encoding': 'chunked' }, (request) => {
    request.write('piece by piece');
    request.addTrailers({ 'X-Sum': '14' });
    request.end();
  }),
  wanted: () => ask('PUT', '/mirror', { Expect: '100-continue', 'Content-Length': 4 }, waiting('body')),
  unwanted: () => ask('PUT', '/sum', { Expect: '100-continue', 'Content-Length': 4 }, waiting('body'), true),
  early: () => ask('POST', '/early', { 'Content-Length': 1000000 }, (request) => request.write('the start'), true),
  // Each event is told of when the one before has come.
  events: () => new Promise((resolve, reject) => {
    const told = [];
    const tell = (event) => ask('GET', '/tell', { 'X-Event': event }, plain).catch(reject);
    const stream = { port, host: '127.0.0.1', path: '/events', headers: { host: 'node.localhost' }, agent: false };
    http.get(stream, (response) => {
      response.setEncoding('utf8');
      response.on('data', (piece) => {
        told.push(piece);
        if (told.length > 5) {
          response.destroy();
          resolve(told);
        } else {
          tell(told.length);
        }
      });
    }).on('error', reject);
  }),
};

if (mode === 'serve') {
  serve();
} else {
  cases[which]().then(
    (seen) => console.log(JSON.stringify(seen)),
    (error) => console.log(JSON.stringify({ error: String(error) })),
  ).then(() => process.exit());
}
