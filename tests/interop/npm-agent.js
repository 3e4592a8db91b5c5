'use strict'
// An agent made with the npm module reverse-http: it dials a relay, asks PTTH/1.0, and answers what comes back with a
// small app that says what it saw.
//
//     NODE_PATH=…/node_modules node npm-agent.js HOST:PORT NAME[,NAME…] LABEL
//
// stdout: one line `connected NAME` for each flipped connection. The module serves one at a time, and dials again at
// once when that one ends: one instance of it for each name. LABEL stands in every answer, so that a test can tell
// several agents of one name apart.

const crypto = require('crypto')
const reverse = require('reverse-http')

const [relay, names, label] = process.argv.slice(2)
const [host, port] = relay.split(':')

for (const name of names.split(',')) {
  const agent = reverse({ host, port, path: '/' + name }, answer)
  agent.on('connection', () => console.log('connected', name))
  agent.on('error', (error) => {
    console.error(name, error.message)
    // After a broken connection the module dials again by itself; after anything else it has given up.
    if (error.code !== 'ECONNRESET' && error.code !== 'EPIPE') process.exit(1)
  })
}

function answer (request, response) {
  const url = new URL(request.url, 'http://agent')
  const app = apps[url.pathname.split('/')[1]] || apps.echo
  response.setHeader('X-Agent', label)
  app(request, response, url.searchParams)
}

const apps = {
  // What we saw, as JSON with a length.
  echo (request, response) {
    seen(request, (json) => {
      response.setHeader('Content-Type', 'application/json')
      response.setHeader('Content-Length', Buffer.byteLength(json))
      response.end(json)
    })
  },

  // The same with no length, in four writes of four moments: Node sends it chunked.
  chunked (request, response) {
    seen(request, (json) => {
      const quarter = Math.ceil(json.length / 4)
      let sent = 0
      const step = () => {
        response.write(json.slice(sent, sent += quarter))
        if (sent < json.length) setTimeout(step, 5)
        else response.end()
      }
      step()
    })
  },

  // An answer with no body, which is not one of length 0.
  none (request, response) {
    request.resume()
    response.writeHead(204)
    response.end()
  },

  // A status of the visitor's choice, with a reason of ours.
  status (request, response, query) {
    request.resume()
    response.writeHead(Number(query.get('code')), 'As You Wish', { 'Content-Length': 0 })
    response.end()
  },

  // `size` octets that start anew every 251: a shifted or lost piece shows. Chunked if asked.
  big (request, response, query) {
    request.resume()
    const body = Buffer.alloc(Number(query.get('size')), Buffer.from(Array.from({ length: 251 }, (_, i) => i)))
    if (!query.has('chunked')) response.setHeader('Content-Length', body.length)
    if (query.has('chunked')) for (let i = 0; i < body.length; i += 10000) response.write(body.subarray(i, i + 10000))
    response.end(query.has('chunked') ? undefined : body)
  },

  // The request's body comes back while it is still arriving.
  mirror (request, response) {
    if (request.headers['content-length']) response.setHeader('Content-Length', request.headers['content-length'])
    request.pipe(response)
  },

  // Two fields of one name, which must neither be joined nor change places.
  twice (request, response) {
    request.resume()
    response.setHeader('Set-Cookie', ['first=1', 'second=2'])
    response.end('ok')
  },

  // Keeps this agent busy for `ms`, so that requests at the same time need the others.
  slow (request, response, query) {
    setTimeout(() => apps.echo(request, response), Number(query.get('ms')))
  }
}

function seen (request, done) {
  const hash = crypto.createHash('sha256')
  let length = 0
  request.on('data', (piece) => {
    hash.update(piece)
    length += piece.length
  })
  request.on('end', () => done(JSON.stringify({
    method: request.method,
    url: request.url,
    headers: request.rawHeaders,
    length,
    sha256: hash.digest('hex'),
    agent: label
  })))
}
