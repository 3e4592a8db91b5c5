'use strict'
// An upstream with what a page of today needs: a WebSocket server, an event stream, uploads, many small images.
//
//     NODE_PATH=…/node_modules node web.js
//
// stdout: `listening PORT`, then `open PATH` and `closed PATH CODE REASON` for each WebSocket.

const crypto = require('crypto')
const fs = require('fs')
const http = require('http')
const path = require('path')
const { WebSocketServer } = require('ws')

// --- HTTP ------------------------------------------------------------------------------------------------------------

// The streams that are open, by their name: what lets the next event go, and how often a browser came for them.
const streams = new Map()
let open = 0

const apps = {
  '' (request, response) {
    response.setHeader('Content-Type', 'text/html; charset=utf-8')
    fs.createReadStream(path.join(__dirname, 'page.html')).pipe(response)
  },

  // A picture that is as wide as its number, so that each can be told from the others.
  image (request, response, url) {
    const width = url.pathname.split('/')[2]
    response.setHeader('Content-Type', 'image/svg+xml')
    response.setHeader('Cache-Control', 'no-store')
    response.end(`<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="10"/>`)
  },

  async upload (request, response) {
    const hash = crypto.createHash('sha256')
    let length = 0
    for await (const piece of request) {
      hash.update(piece)
      length += piece.length
    }
    response.setHeader('Content-Type', 'application/json')
    response.end(JSON.stringify({ method: request.method, length, sha256: hash.digest('hex') }))
  },

  // Six events, the connection ending after three. Each goes out when the one before it was seen: a hop that held one back
  // would hold the rest for ever.
  events (request, response, url) {
    const name = url.searchParams.get('name')
    const stream = streams.get(name) || { visits: 0 }
    streams.set(name, stream)
    stream.visits += 1
    open += 1
    response.on('close', () => { open -= 1 })
    response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' })
    response.write('retry: 50\n\n')
    let id = Number(request.headers['last-event-id'] || 0)
    const next = () => {
      id += 1
      response.write(`id: ${id}\nevent: count\ndata: {"id": ${id}, "visit": ${stream.visits}}\n\n`)
    }
    stream.seen = (seen) => {
      if (seen === 3 || seen === 6) response.end()
      else next()
    }
    next()
  },

  seen (request, response, url) {
    streams.get(url.searchParams.get('name')).seen(Number(url.searchParams.get('id')))
    response.writeHead(204).end()
  },

  state (request, response) {
    response.end(JSON.stringify({ sockets: server.clients.size, streams: open }))
  }
}

const upstream = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://upstream')
  const app = apps[url.pathname.split('/')[1]]
  if (app) return app(request, response, url)
  response.writeHead(404).end('there is no such page\n')
})

// --- WebSocket -------------------------------------------------------------------------------------------------------

const server = new WebSocketServer({
  noServer: true,
  maxPayload: 128 << 20,
  perMessageDeflate: { threshold: 1024 },
  handleProtocols: (offered) => offered.has('echo.v2') ? 'echo.v2' : false
})

const rooms = {
  // The same message back.
  echo (socket) {
    socket.on('message', (data, binary) => socket.send(data, { binary }))
  },

  // Three messages right behind the 101: in the same packet, if the system has it so.
  hello (socket) {
    for (const word of ['one', 'two', 'three']) socket.send(word)
  },

  // Says goodbye after the first message, as the address asks for.
  close (socket, url) {
    const code = Number(url.searchParams.get('code'))
    socket.on('message', () => socket.close(code, url.searchParams.get('reason')))
  },

  // Is gone after the first message, without a word.
  kill (socket) {
    socket.on('message', () => socket.terminate())
  },

  // Pings with what it is sent, and says what came back.
  ping (socket) {
    socket.on('message', (data) => socket.ping(data))
    socket.on('pong', (data) => socket.send(data.toString()))
  },

  // Takes all, says what it was, and sends as much.
  bulk (socket) {
    const hash = crypto.createHash('sha256')
    let length = 0
    socket.on('message', (data, binary) => {
      if (binary) {
        hash.update(data)
        length += data.length
        return
      }
      socket.send(JSON.stringify({ length, sha256: hash.digest('hex') }))
      const piece = Buffer.alloc(65536, 'x')
      for (let sent = 0; sent < length; sent += piece.length) socket.send(piece)
      socket.close(1000, 'all')
    })
  }
}

upstream.on('upgrade', (request, socket, head) => {
  socket.on('error', () => {})
  const url = new URL(request.url, 'http://upstream')
  const room = rooms[url.pathname.split('/')[1]]
  if (!room) {
    const page = 'not you\n'
    socket.end('HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nWWW-Authenticate: Basic realm="room"\r\n' +
      `Content-Length: ${page.length}\r\n\r\n${page}`)
    return
  }
  server.handleUpgrade(request, socket, head, (socket) => {
    console.log('open', url.pathname)
    socket.on('error', () => {})
    socket.on('close', (code, reason) => console.log('closed', url.pathname, code, reason.toString()))
    room(socket, url)
  })
})

upstream.listen(0, '127.0.0.1', () => console.log('listening', upstream.address().port))
